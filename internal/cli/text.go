package cli

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/term"
)

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// CanDraw reports whether a bar may be drawn on the streams: they are terminals that
// understand more than text.
func CanDraw(getenv func(string) string, streams ...io.Writer) bool {
	for _, stream := range streams {
		if !IsTerminal(stream) {
			return false
		}
	}
	return getenv("TERM") != "dumb"
}

// Plural is a number of things.
func Plural(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// OneLine is an error of several lines on one.
func OneLine(err error) string {
	return strings.NewReplacer(":\n\t", ": ", "\n\t", "; ", "\n", "; ").Replace(err.Error())
}

// ToMillisecond rounds a duration for people.
func ToMillisecond(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// Indent wraps a text into indented lines of at most 84 characters.
func Indent(text string) string {
	const margin, width = "       ", 84
	var wrapped strings.Builder
	line := margin
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			wrapped.WriteString(line + "\n")
			line = margin
		}
		line += " " + word
	}
	wrapped.WriteString(line + "\n")
	return wrapped.String()
}

// Version says which build of a command this is.
func Version(command string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return command + " (unknown version)"
	}
	parts := []string{command, info.Main.Version}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			parts = append(parts, s.Value)
		}
	}
	return strings.Join(append(parts, info.GoVersion), " ")
}
