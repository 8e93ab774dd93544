package migrations

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/tenancy"
)

// Standing says how a schema stands to this program.
type Standing string

const (
	// UpToDate is a schema that has had all migrations that this program knows.
	UpToDate Standing = "up to date"
	// Behind is one that lacks some.
	Behind Standing = "behind"
	// Ahead is one that has had a migration that this program does not know.
	Ahead Standing = "newer"
	// Absent is one that does not exist, or has nothing of this library in it.
	Absent Standing = "absent"
	// Broken is one whose version table makes no sense, or cannot be read; Err says why.
	Broken Standing = "broken"
)

// SchemaStatus is how a schema is.
type SchemaStatus struct {
	Target
	Standing Standing
	Version  int64
	// Drift says in words how the schema differs from one that had the same migrations and
	// nothing else; see [Compare]. A schema that is Ahead or Broken is not compared.
	Drift []string
	Err   error // why it is Broken
}

// Status reports the version of each schema, in the order of the list, and whether somebody
// changed what the migrations had made. It reads many schemas at a time, over as many
// connections as there are workers, waits for nobody, and changes nothing: what the schemas
// should be like it sees from schemas that it makes in a transaction and takes back, so the
// role needs CREATE on the database. [WithVersionsOnly] does without. It waits for a server that
// does not answer no longer than [All] does.
func Status(ctx context.Context, databaseURL string, targets iter.Seq2[Target, error], opts ...Option) ([]SchemaStatus, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	cfg, err := connConfig(databaseURL, c.reconnect)
	if err != nil {
		return nil, err
	}
	p, err := c.plan()
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	list, err := collect(targets)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &survey{runner: runner{config: c, plan: p}, models: make(map[model]Description)}
	parts := slices.Collect(slices.Chunk(list, chunk))
	found := make([][]SchemaStatus, len(parts))
	next := make(chan int, len(parts))
	for i := range parts {
		next <- i
	}
	close(next)
	errs := make([]error, min(c.workers, len(parts)))
	var workers sync.WaitGroup
	for w := range errs {
		workers.Go(func() {
			if errs[w] = s.work(ctx, cfg, next, parts, found); errs[w] != nil {
				stop()
			}
		})
	}
	workers.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	return slices.Concat(found...), nil
}

// survey is one run of Status.
type survey struct {
	runner
	mu     sync.Mutex
	models map[model]Description
}

// model names what a schema should be like.
type model struct {
	version int64
	pinned  bool
}

// work looks at parts of the list. Each connection sees so many schemas only.
func (s *survey) work(ctx context.Context, cfg *pgx.ConnConfig, next <-chan int, parts [][]Target, found [][]SchemaStatus) (err error) {
	var conn *pgx.Conn
	closeConn := func() {
		if conn != nil {
			hangUp(ctx, conn)
		}
	}
	defer func() { closeConn() }()
	for seen := 0; ; seen++ {
		i, ok := <-next
		if !ok {
			return nil
		}
		if conn == nil || seen%(perConnection/chunk) == 0 {
			closeConn()
			if conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
				return err
			}
		}
		if found[i], err = s.settle(ctx, conn, parts[i]); err != nil {
			return err
		}
	}
}

// settle looks at schemas, and again at those that seem to have drifted because they were
// migrated between one query and the next.
func (s *survey) settle(ctx context.Context, conn *pgx.Conn, targets []Target) ([]SchemaStatus, error) {
	list, before, err := s.look(ctx, conn, targets)
	if err != nil {
		return nil, err
	}
	var doubtful []int
	for i, status := range list {
		if status.Drift != nil {
			doubtful = append(doubtful, i)
		}
	}
	for range 5 {
		if len(doubtful) == 0 {
			break
		}
		again := make([]Target, len(doubtful))
		for j, i := range doubtful {
			again[j] = list[i].Target
		}
		after, err := s.states(ctx, conn, schemasOf(again))
		if err != nil {
			return nil, err
		}
		var moved []int
		for j, i := range doubtful {
			if after[j].table != before[i].table || !slices.Equal(after[j].applied, before[i].applied) {
				moved = append(moved, i)
			}
		}
		doubtful = nil
		for _, i := range moved {
			one, at, err := s.look(ctx, conn, []Target{list[i].Target})
			if err != nil {
				return nil, err
			}
			if list[i], before[i] = one[0], at[0]; list[i].Drift != nil {
				doubtful = append(doubtful, i)
			}
		}
	}
	return list, nil
}

func (s *survey) look(ctx context.Context, conn *pgx.Conn, targets []Target) ([]SchemaStatus, []state, error) {
	states, err := s.states(ctx, conn, schemasOf(targets))
	if err != nil {
		return nil, nil, err
	}
	list := make([]SchemaStatus, len(targets))
	var compared []int
	for i, target := range targets {
		now := states[i]
		if now.unknown {
			one, err := s.states(ctx, conn, []tenancy.Schema{target.Schema})
			if err != nil {
				return nil, nil, err
			}
			now = one[0]
			states[i] = now
		}
		list[i] = SchemaStatus{Target: target, Version: now.version()}
		lacking, err := s.plan.since(now.applied)
		switch {
		case !now.table:
			list[i].Standing = Absent
			continue
		case now.unknown:
			list[i].Standing, list[i].Err = Broken, fmt.Errorf("the table %s cannot be read; it is locked, not as goose made it, or not the role's to read", VersionTable)
			continue
		case now.version() > s.plan.latest():
			list[i].Standing = Ahead
			continue
		case err != nil:
			list[i].Standing, list[i].Err = Broken, err
			continue
		case len(lacking) > 0:
			list[i].Standing = Behind
		default:
			list[i].Standing = UpToDate
		}
		compared = append(compared, i)
	}
	if s.versionsOnly || len(compared) == 0 {
		return list, states, nil
	}
	return list, states, s.compare(ctx, conn, list, states, compared)
}

func (s *survey) compare(ctx context.Context, conn *pgx.Conn, list []SchemaStatus, states []state, compared []int) error {
	owned, err := s.owned(ctx, conn)
	if err != nil {
		return err
	}
	targets := make([]Target, len(compared))
	for j, i := range compared {
		targets[j] = list[i].Target
	}
	texts, err := s.describe(ctx, conn, targets, owned)
	if err != nil {
		return err
	}
	for j, i := range compared {
		want, err := s.model(ctx, conn, model{version: list[i].Version, pinned: texts[j].org != uuid.Nil})
		if err != nil {
			return err
		}
		if s.same(want, texts[j], states[i]) {
			continue
		}
		list[i].Drift = Compare(want, Description{Objects: split(texts[j].objects), Versions: states[i].applied})
	}
	return nil
}

// same is what Compare is, in the case that is met ten thousand times.
func (*survey) same(want Description, got text, at state) bool {
	for name, lines := range want.Objects {
		rest, ok := got.objects[name]
		if !ok {
			return false
		}
		for i, line := range lines {
			if i > 0 {
				if rest, ok = strings.CutPrefix(rest, "\n"); !ok {
					return false
				}
			}
			if rest, ok = strings.CutPrefix(rest, line); !ok {
				return false
			}
		}
		if rest != "" {
			return false
		}
	}
	return slices.Equal(want.Versions, at.applied)
}

// owned returns the names of the tables and functions that the migrations make.
func (s *survey) owned(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	want, err := s.model(ctx, conn, model{version: s.plan.latest()})
	if err != nil {
		return nil, err
	}
	var list []string
	for name := range maps.Keys(want.Objects) {
		_, name, _ = strings.Cut(name, " ")
		name, _, _ = strings.Cut(name, "(")
		list = append(list, name)
	}
	return list, nil
}

// model describes what a schema should be like, from one that it makes and takes back.
func (s *survey) model(ctx context.Context, conn *pgx.Conn, m model) (Description, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, ok := s.models[m]; ok {
		return d, nil
	}
	d, err := s.make(ctx, conn, m)
	if err != nil {
		return Description{}, fmt.Errorf("make a schema to compare with, and take it back: %w", err)
	}
	s.models[m] = d
	return d, nil
}

func (r *runner) make(ctx context.Context, conn *pgx.Conn, m model) (Description, error) {
	random := uuid.New()
	name := "pgidem_compare_" + hex.EncodeToString(random[:8])
	if m.pinned {
		name = scratch("pgidem_compare_", random)
	}
	schema, err := tenancy.ParseSchema(name)
	if err != nil {
		return Description{}, err
	}
	target, err := Target{Schema: schema}.check()
	if err != nil {
		return Description{}, err
	}
	defer abandon(ctx, conn)
	tables, err := send(ctx, conn, fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\nCREATE SCHEMA %[1]s;\nSET LOCAL search_path = %[1]s;\n%[2]s"+
		"SELECT pg_catalog.string_agg(version_id::text, ',' ORDER BY id) FROM %[3]s;\nSET LOCAL search_path = '';\n%[4]s",
		schema.Quoted(), r.plan.upTo(m.version), VersionTable, describeSQL([]tenancy.Schema{schema}, nil)))
	if err != nil {
		return Description{}, err
	}
	d := Description{Objects: split(r.texts([]Target{target}, tables[len(tables)-1])[0].objects)}
	d.Versions, err = parseVersions(tables[len(tables)-3][0][0])
	return d, err
}
