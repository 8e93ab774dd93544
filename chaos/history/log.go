package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Names of the files in a history's folder. Each process of the service has one for its
// events.
const (
	MetaFile     = "meta.jsonl"
	RequestsFile = "requests.jsonl"
	BankFile     = "bank.jsonl"
	FaultsFile   = "faults.jsonl"
	TablesFile   = "tables.jsonl"
	eventsGlob   = "events-*.jsonl"
)

// EventsFile returns the name of the file for the events of a process.
func EventsFile(process string) string { return "events-" + process + ".jsonl" }

// Log appends lines to one file. Each is one write, so that it is whole and lasts,
// whatever becomes of the process right after. It is safe for concurrent use.
type Log struct{ file *os.File }

// Open returns the log of the name in the folder.
func Open(dir, name string) (*Log, error) {
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return &Log{file}, nil
}

// Write appends a line. It panics when it cannot: a history with holes proves nothing.
func (l *Log) Write(line any) {
	text, err := json.Marshal(line)
	if err == nil {
		_, err = l.file.Write(append(text, '\n'))
	}
	if err != nil {
		panic(fmt.Sprintf("history: write %s: %v", l.file.Name(), err))
	}
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// Load reads the history in a folder. Files that are missing count as empty.
func Load(dir string) (*History, error) {
	var h History
	var metas []Meta
	var tables []Tables
	err := errors.Join(
		read(dir, MetaFile, &metas), read(dir, TablesFile, &tables),
		read(dir, RequestsFile, &h.Requests), read(dir, BankFile, &h.Bank), read(dir, FaultsFile, &h.Faults),
	)
	names, globErr := filepath.Glob(filepath.Join(dir, eventsGlob))
	err = errors.Join(err, globErr)
	for _, name := range names {
		err = errors.Join(err, read(dir, filepath.Base(name), &h.Events))
	}
	if len(metas) == 1 {
		h.Meta = metas[0]
	}
	for _, t := range tables {
		h.Tables.Records = append(h.Tables.Records, t.Records...)
		h.Tables.Payments = append(h.Tables.Payments, t.Payments...)
		h.Tables.Postings = append(h.Tables.Postings, t.Postings...)
	}
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return &h, nil
}

// read appends the lines of a file.
func read[T any](dir, name string, to *[]T) error {
	file, err := os.Open(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	lines := json.NewDecoder(bufio.NewReader(file))
	for {
		var line T
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%s, entry %d: %w", name, len(*to)+1, err)
		}
		*to = append(*to, line)
	}
}
