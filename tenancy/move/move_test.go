package move_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/moved"
	"github.com/pgidem/pgidem/tenancy"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

var steps = []move.Step{move.Suspending, move.Draining, move.Fencing, move.Copying, move.Verifying, move.Switching, move.Dropping}

// TestMove: a tenant goes round three servers, and is whole in each.
func TestMove(t *testing.T) {
	t.Parallel()
	w := newWorldOfServers(t)
	tenant, idle := w.newTenant(t, "a"), w.newTenant(t, "a")
	if _, err := w.tenants.SetState(t.Context(), idle.OrgID, registry.Suspended); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"b", "c", "a"} {
		var seen []move.Step
		m := w.mover(t, move.WithProgress(func(s move.Step) { seen = append(seen, s) }))
		report, err := m.Move(t.Context(), tenant.OrgID, to)
		if err != nil {
			t.Fatal(err)
		}
		if report.To != to || report.Tenant.Cluster != to || report.Tenant.State != registry.Active || len(report.Tables) != 6 || report.Away <= 0 {
			t.Errorf("%+v", report)
		}
		if !slices.Equal(seen, steps) {
			t.Errorf("steps %v, want %v", seen, steps)
		}
		w.is(t, tenant, to, registry.Active)
		// The sequences go on.
		w.exec(t, to, fmt.Sprintf(`INSERT INTO %[1]s.accounts (name) VALUES ('new'); DELETE FROM %[1]s.accounts WHERE name = 'NEW'`, tenant.Schema.Quoted()))
		if report, err := m.Move(t.Context(), tenant.OrgID, to); err != nil || report.From != to || report.Tables != nil {
			t.Errorf("where it is already: %+v, %v", report, err)
		}
	}
	if _, err := w.mover(t).Move(t.Context(), idle.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	w.is(t, idle, "b", registry.Suspended)
}

func TestMoveRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.mover(t)
	if _, err := m.Move(t.Context(), uuid.New(), "b"); !errors.Is(err, tenancy.ErrUnknownTenant) {
		t.Errorf("an unknown tenant: %v", err)
	}
	tenant := w.newTenant(t, "a")
	if _, err := m.Move(t.Context(), tenant.OrgID, "elsewhere"); err == nil || !strings.Contains(err.Error(), `no database URL is given for cluster "elsewhere"`) {
		t.Errorf("an unknown cluster: %v", err)
	}
	if _, err := m.Cancel(t.Context(), tenant.OrgID); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("cancelled before it began: %v", err)
	}
	s := tenant.Schema.Quoted()
	w.exec(t, "b", `CREATE SCHEMA `+s+`; CREATE TABLE `+s+`.theirs (a int)`)
	if _, err := m.Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, move.ErrOccupied) {
		t.Errorf("into an occupied place: %v", err)
	}
	if got, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil || got.State != registry.Active || got.Moving {
		t.Errorf("%+v, %v; want nothing begun", got, err)
	}
	// It may come to be there meanwhile.
	meanwhile, err := w.tenants.BeginMove(t.Context(), tenant.OrgID, "a", "b")
	if err != nil || !meanwhile.Moving {
		t.Fatal(err)
	}
	if _, err := m.Cancel(t.Context(), tenant.OrgID); err != nil {
		t.Errorf("cancelled beside a stranger's schema: %v", err)
	}
	w.exec(t, "b", `SELECT FROM `+s+`.theirs`)
	w.exec(t, "b", `DROP SCHEMA `+s+` CASCADE`)
	w.is(t, tenant, "a", registry.Active)
	twice, err := move.New(w.tenants, map[string]string{"a": w.urls["a"], "b": w.urls["a"] + "&application_name=other"}, move.WithSettle(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := twice.Move(t.Context(), tenant.OrgID, "b"); err == nil || !strings.Contains(err.Error(), "are the same database") {
		t.Errorf("two names for one database: %v", err)
	}
	w.is(t, tenant, "a", registry.Active)
	odd := uuid.New()
	schema, err := tenancy.ParseSchema(moved.Fence(odd))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.tenants.Add(t.Context(), registry.Tenant{OrgID: odd, Schema: schema, Cluster: "a", State: registry.Active}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Move(t.Context(), odd, "b"); err == nil || !strings.Contains(err.Error(), "kept for what is being moved") {
		t.Errorf("a schema of a name that is kept: %v", err)
	}
	for name, url := range map[string]string{"no URL": "host=localhost password=secret", "nonsense": "postgres://u:secret@host:port/db"} {
		if _, err := move.New(w.tenants, map[string]string{"a": url}); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMoveBrokenOff: at each step the process is told to stop; another then goes on, or goes
// back.
func TestMoveBrokenOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, at := range steps {
		for _, back := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, back %t", at, back), func(t *testing.T) {
				tenant := w.newTenant(t, "a")
				ctx, cancel := context.WithCancel(t.Context())
				m := w.mover(t, move.WithProgress(func(s move.Step) {
					if s == at {
						cancel()
					}
				}))
				if _, err := m.Move(ctx, tenant.OrgID, "b"); err == nil {
					t.Fatal("it was not broken off")
				}
				complete := at == move.Switching || at == move.Dropping // which Cancel does not take back
				begun := at != move.Suspending
				switch {
				case !back:
					if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
						t.Fatal(err)
					}
					w.is(t, tenant, "b", registry.Active)
				case begun && !complete:
					if got, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); err != nil || got.State != registry.Active {
						t.Fatalf("%+v, %v", got, err)
					}
					w.is(t, tenant, "a", registry.Active)
				default:
					if _, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); !errors.Is(err, registry.ErrConflict) {
						t.Errorf("cancelled what was not under way, or complete: %v", err)
					}
					if begun { // and it can be finished
						if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
							t.Fatal(err)
						}
						w.is(t, tenant, "b", registry.Active)
					}
				}
			})
		}
	}
}

// TestMoveBusy: a tenant with something in progress, or a transaction that holds its tables,
// stays where it is.
func TestMoveBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	impatient := []move.Option{move.WithDrainTimeout(300 * time.Millisecond), move.WithLockTimeout(50 * time.Millisecond)}
	tenant := w.newTenant(t, "a")
	records := tenant.Schema.Quoted() + ".idempotency_records"
	w.exec(t, "a", `INSERT INTO `+records+` (created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash)
		VALUES (now(), now() + interval '1 day', now() + interval '1 hour', gen_random_uuid(), $1, 1, true, 'running', '\x01')`, tenant.OrgID)
	if _, err := w.mover(t, impatient...).Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, move.ErrBusy) || !strings.Contains(err.Error(), "1 attempts") {
		t.Errorf("an attempt in progress: %v", err)
	}
	w.is(t, tenant, "a", registry.Active)

	// One that dies goes along, for a retry to take over.
	w.exec(t, "a", `UPDATE `+records+` SET lease_until = now() WHERE key = 'running'`)
	tx, err := w.pools["a"].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE `+tenant.Schema.Quoted()+`.accounts SET data = '{}'`); err != nil {
		t.Fatal(err)
	}
	if _, err := w.mover(t, impatient...).Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, move.ErrBusy) || !strings.Contains(err.Error(), "transactions use tables") {
		t.Errorf("a transaction that does not end: %v", err)
	}
	w.is(t, tenant, "a", registry.Active)

	// A transaction that commits while the fence waits for it is copied.
	committed := make(chan error, 1)
	m := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Fencing && tx != nil {
			ending := tx
			tx = nil
			go func() {
				time.Sleep(100 * time.Millisecond) // so that the lock has to be waited for, most of the time
				committed <- ending.Commit(context.Background())
			}()
		}
	}))
	if _, err := m.Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "b", registry.Active)
	var changed, running int
	if err := w.pools["b"].QueryRow(t.Context(), `SELECT (SELECT count(*) FROM `+tenant.Schema.Quoted()+`.accounts WHERE data = '{}'), (SELECT count(*) FROM `+records+` WHERE key = 'running')`).
		Scan(&changed, &running); err != nil || changed != 500 || running != 1 {
		t.Errorf("%d accounts changed, %d in progress, %v", changed, running, err)
	}
}

// TestMoveDiffers: a copy that is not what was copied is not used.
func TestMoveDiffers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for damage, want := range map[string]string{
		`DELETE FROM %s.payments WHERE id = (SELECT min(id) FROM %s.payments)`:              "payments has 499 rows and not 500",
		`UPDATE %s.accounts SET blob = '\x00' WHERE id = (SELECT min(id) FROM %s.accounts)`: "accounts has the checksum",
		`DROP TABLE %s.idempotency_steps`:                                                   "idempotency_steps is missing",
		`CREATE TABLE %s.more (a int)`:                                                      "more is there in addition",
		`SELECT nextval('%s.accounts_id_seq')`:                                              "accounts_id_seq has the checksum",
		`ALTER TABLE %s.payments RENAME TO paid`:                                            "payments is missing",
	} {
		tenant := w.newTenant(t, "a")
		m := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == move.Verifying {
				w.exec(t, "b", strings.ReplaceAll(damage, "%s", fmt.Sprintf("moving_%x", tenant.OrgID[:])))
			}
		}))
		if _, err := m.Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, move.ErrDiffers) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s", damage, err, want)
		}
		if got, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil || got.State != registry.Suspended || got.Cluster != "a" {
			t.Errorf("%+v, %v", got, err)
		}
		if strings.HasPrefix(damage, "DELETE") { // it can be moved all the same
			if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
				t.Error(err)
			}
			w.is(t, tenant, "b", registry.Active)
		}
	}
}

// TestMoveBesideAJanitor: a janitor of the other cluster that comes by in the middle of it
// leaves the copy alone.
func TestMoveBesideAJanitor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	w.exec(t, "a", `INSERT INTO `+tenant.Schema.Quoted()+`.idempotency_records (created_at, expires_at, lease_until, completed_at, token, org_id, attempt, response_status, response_kept, key, request_hash)
		SELECT now() - interval '2 days', now() - interval '1 day', now() - interval '2 days', now() - interval '2 days', gen_random_uuid(), $1, 1, 201, true, 'expired ' || i, '\x01' FROM generate_series(1, 20) AS i`, tenant.OrgID)
	purge := func() (deleted int64) {
		schemas, err := pgstore.Schemas(t.Context(), w.pools["b"])
		if err != nil {
			t.Error(err)
		}
		for _, schema := range schemas {
			n, err := pgstore.Purge(t.Context(), w.pools["b"], schema, pgstore.PurgeOptions{})
			if deleted += n; err != nil {
				t.Error(err)
			}
		}
		return deleted
	}
	m := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Verifying {
			if n := purge(); n != 0 {
				t.Errorf("%d records of the copy were deleted", n)
			}
		}
	}))
	if _, err := m.Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	if n := purge(); n != 20 {
		t.Errorf("%d records were deleted when it had arrived", n)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveFails: what pg_dump and pg_restore say is told, and the tenant can be moved when
// that is mended.
func TestMoveFails(t *testing.T) {
	t.Parallel()
	w := newWorldOfServers(t)
	tenant := w.newTenant(t, "a")
	w.exec(t, "b", `DROP ROLE `+role)
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err == nil || !strings.Contains(err.Error(), "pg_restore into cluster") || !strings.Contains(err.Error(), role) {
		t.Errorf("a role is missing: %v", err)
	}
	if _, err := w.mover(t, move.WithPrograms(t.TempDir())).Move(t.Context(), tenant.OrgID, "b"); err == nil || !strings.Contains(err.Error(), "pg_dump has to be installed") {
		t.Errorf("no programs: %v", err)
	}
	// Meanwhile nobody else can write.
	if _, err := w.pools["a"].Exec(t.Context(), `DELETE FROM `+tenant.Schema.Quoted()+`.payments`); err == nil {
		t.Error("the fence lets writes through")
	}
	w.exec(t, "b", `CREATE ROLE `+role)
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Error(err)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveAfterAnOrphan: what pg_dump or pg_restore of a killed run are still doing is ended,
// and if that takes too long the error names it.
func TestMoveAfterAnOrphan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	for _, cluster := range []string{"a", "b"} {
		config, err := pgx.ParseConfig(w.urls[cluster])
		if err != nil {
			t.Fatal(err)
		}
		config.RuntimeParams["application_name"] = fmt.Sprintf("pgidem move %x", tenant.OrgID[:])
		orphan, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = orphan.Close(context.WithoutCancel(t.Context())) }()
		// It has no time at all.
		_, err = w.mover(t, move.WithOrphanPatience(-1)).Move(t.Context(), tenant.OrgID, "b")
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("cluster %q: pg_dump or pg_restore of an earlier run", cluster)) || !strings.Contains(err.Error(), strconv.FormatUint(uint64(orphan.PgConn().PID()), 10)) {
			t.Errorf("%v; want process %d of cluster %s named", err, orphan.PgConn().PID(), cluster)
		}
		w.is(t, tenant, "a", registry.Active)
		if orphan.Ping(t.Context()) == nil {
			t.Error("it was not told to end")
		}
	}
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveTwice: of two processes that move one tenant, one does.
func TestMoveTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	var second error
	m := w.mover(t, move.WithProgress(func(s move.Step) {
		if s == move.Copying {
			_, second = w.mover(t).Move(t.Context(), tenant.OrgID, "b")
		}
	}))
	if _, err := m.Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	if second == nil || !strings.Contains(second.Error(), "by another process") {
		t.Errorf("the second: %v", second)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveSpoiled: a schema on which others depend, who would neither go along nor survive,
// is left where it is; nothing of theirs is dropped.
func TestMoveSpoiled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for spoil, want := range map[string]string{
		`CREATE VIEW %[2]s.v AS SELECT * FROM %[1]s.payments`:             "v",
		`CREATE TABLE %[2]s.t (account bigint REFERENCES %[1]s.accounts)`: "t",
		`CREATE TABLE %[1]s.parts (a int) PARTITION BY LIST (a); CREATE TABLE %[2]s.t PARTITION OF %[1]s.parts FOR VALUES IN (1); INSERT INTO %[1]s.parts VALUES (1)`: "t",
		`CREATE TABLE %[2]s.t () INHERITS (%[1]s.accounts)`:                                                                                   "t",
		`CREATE TABLE %[2]s.t (a %[1]s.currency)`:                                                                                             "t",
		`CREATE COLLATION %[1]s.c FROM "C"; CREATE TABLE %[2]s.t (a text COLLATE %[1]s.c)`:                                                    "t",
		`CREATE OPERATOR %[1]s.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq); CREATE VIEW %[2]s.v AS SELECT 1 OPERATOR(%[1]s.===) 2`: "v",
		`CREATE STATISTICS %[2]s.s ON id, name FROM %[1]s.accounts`:                                                                           "s",
		`CREATE TABLE %[2]s.t (a bigint DEFAULT nextval('%[1]s.accounts_id_seq'))`:                                                            "t",
		`CREATE TABLE %[2]s.t (a int); CREATE POLICY p ON %[2]s.t USING (a IN (SELECT id FROM %[1]s.accounts))`:                               "t",
		`CREATE TABLE %[2]s.t (name text); CREATE TRIGGER stamp BEFORE INSERT ON %[2]s.t FOR EACH ROW EXECUTE FUNCTION %[1]s.stamp()`:         "t",
	} {
		tenant := w.newTenant(t, "a")
		other := fmt.Sprintf("other_%x", tenant.OrgID[:4])
		w.exec(t, "a", `CREATE SCHEMA `+other)
		w.exec(t, "a", fmt.Sprintf(spoil, tenant.Schema.Quoted(), other))
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err == nil || !strings.Contains(err.Error(), "others depend on it: ") || !strings.Contains(err.Error(), other+"."+want) {
			t.Errorf("%s: %v", spoil, err)
		}
		if got, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil || got.Cluster != "a" || got.State != registry.Active {
			t.Errorf("%s: %+v, %v", spoil, got, err)
		}
	}
}

// TestMoveWithAll: what is rare in a schema goes along, and casts and extensions would not.
func TestMoveWithAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	s := tenant.Schema.Quoted()
	for spoil, mend := range map[string]string{
		`CREATE CAST (text AS %s.currency) WITH INOUT`: `DROP CAST (text AS %s.currency)`,
		`CREATE EXTENSION citext SCHEMA %s`:            `DROP EXTENSION citext; SELECT '%s'`,
	} {
		if _, err := w.pools["a"].Exec(t.Context(), fmt.Sprintf(spoil, s)); err != nil {
			t.Logf("%s: %v", spoil, err) // the server may lack the extension
			continue
		}
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err == nil || !strings.Contains(err.Error(), "others depend on it: ") {
			t.Errorf("%s: %v", spoil, err)
		}
		w.exec(t, "a", fmt.Sprintf(mend, s))
	}
	w.exec(t, "a", fmt.Sprintf(`
		CREATE COLLATION %[1]s.c FROM "C";
		CREATE TABLE %[1]s.collated (a text COLLATE %[1]s.c);
		CREATE OPERATOR %[1]s.=== (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
		CREATE OPERATOR FAMILY %[1]s.f USING hash;
		CREATE OPERATOR CLASS %[1]s.o FOR TYPE int USING hash FAMILY %[1]s.f AS OPERATOR 1 %[1]s.===, FUNCTION 1 hashint4(int);
		CREATE INDEX ON %[1]s.accounts USING hash ((id::int) %[1]s.o);
		CREATE TEXT SEARCH CONFIGURATION %[1]s.search (COPY = pg_catalog.simple);
		CREATE STATISTICS %[1]s.s ON id, name FROM %[1]s.accounts;
		CREATE DOMAIN %[1]s.d AS int CHECK (VALUE > 0);
		CREATE MATERIALIZED VIEW %[1]s.m AS SELECT * FROM %[1]s.totals;
		CREATE TABLE %[1]s.parts (a int PRIMARY KEY, long text) PARTITION BY LIST (a);
		CREATE TABLE %[1]s.part PARTITION OF %[1]s.parts DEFAULT;
		ALTER TABLE %[1]s.accounts ENABLE ROW LEVEL SECURITY;
		CREATE POLICY p ON %[1]s.accounts USING (id IN (SELECT account FROM %[1]s.payments));
		ALTER DEFAULT PRIVILEGES IN SCHEMA %[1]s GRANT SELECT ON TABLES TO `+role, s))
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "b", registry.Active)
}

// TestMoveWhoseSwitchWasLost: the registry comes back without the last of its commits. The
// copy may have been in use, and is what there is.
func TestMoveWhoseSwitchWasLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, at := range []move.Step{move.Dropping, ""} { // the process dies after the switch, or ends well
		tenant := w.newTenant(t, "a")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == at {
				cancel()
			}
		})).Move(ctx, tenant.OrgID, "b")
		if (err == nil) != (at == "") {
			t.Fatal(err)
		}
		w.exec(t, "b", `DELETE FROM `+tenant.Schema.Quoted()+`.payments WHERE key = 'old 1'; INSERT INTO `+tenant.Schema.Quoted()+`.payments (account, amount, currency, key) VALUES (1, 1.01, 'EUR', 'old one')`)
		w.exec(t, "a", `UPDATE pgidem.tenants SET cluster = 'a', state = 'suspended', moving_to = 'b', move_id = gen_random_uuid(), resume = true WHERE org_id = $1`, tenant.OrgID)
		if _, err := w.mover(t).Cancel(t.Context(), tenant.OrgID); !errors.Is(err, registry.ErrConflict) || !strings.Contains(err.Error(), "complete") {
			t.Errorf("taken back: %v", err)
		}
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
			t.Error(err)
		}
		w.is(t, tenant, "b", registry.Active)
		var paid bool
		if err := w.pools["b"].QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM `+tenant.Schema.Quoted()+`.payments WHERE key = 'old one')`).Scan(&paid); err != nil || !paid {
			t.Errorf("what was paid after the switch is there: %t, %v", paid, err)
		}
	}
}

// TestMoveTooLate: a process that had looked at the tenant before others moved it on does
// nothing to it.
func TestMoveTooLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	late := w.mover(t, move.WithLooked(func() {
		for _, to := range []string{"b", "c"} {
			if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, to); err != nil {
				t.Error(err)
			}
		}
	}))
	if _, err := late.Move(t.Context(), tenant.OrgID, "b"); err == nil {
		t.Error("it moved what it had not looked at")
	}
	w.is(t, tenant, "c", registry.Active)

	late = w.mover(t, move.WithLooked(func() {
		if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "b"); err != nil {
			t.Error(err)
		}
		// Another move is broken off while the only data are fenced.
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		_, err := w.mover(t, move.WithProgress(func(s move.Step) {
			if s == move.Copying {
				cancel()
			}
		})).Move(ctx, tenant.OrgID, "a")
		if err == nil {
			t.Error("it was not broken off")
		}
	}))
	if _, err := late.Move(t.Context(), tenant.OrgID, "c"); err == nil { // where it is, as far as this one knows
		t.Error("it dropped what is left in other places without a second look")
	}
	if _, err := w.mover(t).Move(t.Context(), tenant.OrgID, "a"); err != nil {
		t.Fatal(err)
	}
	w.is(t, tenant, "a", registry.Active)
}

// TestMoveOfAnother: a process that had looked at a tenant that was dropped since, and registered
// anew, does nothing to the new one.
func TestMoveOfAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tenant := w.newTenant(t, "a")
	for _, to := range []string{"b", "a"} { // elsewhere, or where it is
		var anew registry.Tenant
		late := w.mover(t, move.WithLooked(func() {
			err := w.tenants.Remove(t.Context(), tenant.OrgID)
			if err == nil {
				anew, err = w.tenants.Add(t.Context(), registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema, Cluster: "a", State: registry.Active})
			}
			if err != nil {
				t.Error(err)
			}
		}))
		_, err := late.Move(t.Context(), tenant.OrgID, to)
		if !errors.Is(err, registry.ErrConflict) || !errors.Is(err, registry.ErrReplaced) || !strings.Contains(err.Error(), "look again") {
			t.Errorf("to %s: %v", to, err)
		}
		if now, err := w.tenants.Tenant(t.Context(), tenant.OrgID); err != nil || now != anew {
			t.Errorf("to %s: %+v, %v; want %+v", to, now, err, anew)
		}
		w.is(t, tenant, "a", registry.Active)
	}
}

// TestMoveOfOneThatIsGone: a process that had looked at a tenant that others have dropped since, or moved,
// does not say that the registry is wrong.
func TestMoveOfOneThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]struct {
		meanwhile func(registry.Tenant) error
		want      error
	}{
		"dropped": {func(tenant registry.Tenant) error { return w.tenants.Remove(t.Context(), tenant.OrgID) }, tenancy.ErrUnknownTenant},
		"registered anew elsewhere": {func(tenant registry.Tenant) error {
			if err := w.tenants.Remove(t.Context(), tenant.OrgID); err != nil {
				return err
			}
			_, err := w.tenants.Add(t.Context(), registry.Tenant{OrgID: tenant.OrgID, Schema: tenant.Schema, Cluster: "c", State: registry.Active})
			return err
		}, registry.ErrReplaced},
		"moved": {func(tenant registry.Tenant) error {
			now, err := w.tenants.BeginMove(t.Context(), tenant.OrgID, "a", "c")
			if err == nil {
				_, err = w.tenants.FinishMove(t.Context(), tenant.OrgID, now.MoveID)
			}
			return err
		}, registry.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			tenant := w.newTenant(t, "a")
			late := w.mover(t, move.WithProgress(func(s move.Step) { t.Errorf("begun: %s", s) }), move.WithLooked(func() {
				if err := c.meanwhile(tenant); err != nil {
					t.Error(err)
				}
				w.exec(t, "a", `DROP SCHEMA `+tenant.Schema.Quoted()+` CASCADE`)
			}))
			if _, err := late.Move(t.Context(), tenant.OrgID, "b"); !errors.Is(err, c.want) || strings.Contains(err.Error(), "correct the placement") {
				t.Errorf("%v; want %v", err, c.want)
			}
		})
	}
}
