package pgstore_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/internal/pgtest"
	"github.com/pgidem/pgidem/internal/storetest"
	"github.com/pgidem/pgidem/tenancy"
)

// late is a directory that has not heard of what the one behind it knows, and looks there
// when it is asked to.
type late struct {
	storetest.Placements
	known storetest.Placements
	looks atomic.Int64
	cut   atomic.Bool // the other cannot be asked
}

func (l *late) Refresh(ctx context.Context, org uuid.UUID) (tenancy.Placement, error) {
	l.looks.Add(1)
	if l.cut.Load() {
		return tenancy.Placement{}, errors.New("the registry cannot be asked")
	}
	place, err := l.known.Place(ctx, org)
	if !place.Schema.IsZero() {
		l.Set(org, place)
		l.Suspend(org, errors.Is(err, tenancy.ErrSuspendedTenant))
	}
	return place, err
}

// moves are two databases between which tenants move, and stores of two processes: one has
// heard of all that happened, and the other of nothing.
type moves struct {
	a, b     *pgxpool.Pool
	dir      *late
	informed *pgstore.Store
	store    *pgstore.Store
}

func newMoves(t *testing.T) *moves {
	t.Helper()
	m := &moves{a: pgtest.NewPool(t), b: pgtest.NewPool(t), dir: new(late)}
	m.informed, m.store = m.newStore(t, &m.dir.known), m.newStore(t, m.dir)
	return m
}

func (m *moves) newStore(t *testing.T, dir tenancy.Directory) *pgstore.Store {
	t.Helper()
	store, err := pgstore.NewRouted(pgstore.Clusters{"a": pgstore.SinglePool(m.a), "b": pgstore.SinglePool(m.b)}, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return store
}

// newTenant makes a tenant that has moved from a to b.
func (m *moves) newTenant(t *testing.T) uuid.UUID {
	t.Helper()
	org := storetest.NewTenant(t, m.b)
	m.dir.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "a"})
	m.dir.known.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "b"})
	return org
}

// forget has the late directory think again that the tenant is in a.
func (m *moves) forget(t *testing.T, org uuid.UUID) {
	t.Helper()
	m.dir.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "a"})
	m.dir.Suspend(org, false)
}

type anyStore interface {
	idempotency.LeaseStore
	idempotency.StepStore
	Clear(ctx context.Context, org uuid.UUID) error
}

// TestFollow: each operation of a process that has not heard of a move is done where the
// tenant is.
func TestFollow(t *testing.T) {
	t.Parallel()
	m := newMoves(t)
	for name, mode := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := mode(m.store).(anyStore)
			for operation, do := range map[string]func(*testing.T, uuid.UUID, idempotency.ClaimRequest) error{
				"Claim": func(t *testing.T, _ uuid.UUID, req idempotency.ClaimRequest) error {
					result, err := store.Claim(t.Context(), req)
					if err == nil && result.Outcome != idempotency.OutcomeInFlight {
						t.Errorf("outcome %d", result.Outcome)
					}
					return err
				},
				"Claim to be kept": func(t *testing.T, org uuid.UUID, _ idempotency.ClaimRequest) error {
					req := claimRequest(org, "kept")
					req.Kept, req.Request = true, &idempotency.KeptRequest{Method: "POST", Target: "/"}
					result, err := store.Claim(t.Context(), req)
					if err == nil {
						err = store.Release(t.Context(), req.Claim)
					}
					if result.Outcome != idempotency.OutcomeClaimed {
						t.Errorf("outcome %d", result.Outcome)
					}
					return err
				},
				"Put": func(t *testing.T, org uuid.UUID, _ idempotency.ClaimRequest) error {
					err := store.Put(t.Context(), &idempotency.Record{OrgID: org, Key: "put", RequestHash: "hash", ResponseStatus: 201})
					if _, getErr := m.informed.Get(t.Context(), org, "put"); getErr != nil {
						t.Error(getErr)
					}
					return err
				},
				"Get": func(t *testing.T, org uuid.UUID, _ idempotency.ClaimRequest) error {
					if err := m.informed.Put(t.Context(), &idempotency.Record{OrgID: org, Key: "there", RequestHash: "hash", ResponseStatus: 201}); err != nil {
						t.Error(err)
					}
					_, err := store.Get(t.Context(), org, "there")
					return err
				},
				"Clear": func(t *testing.T, org uuid.UUID, _ idempotency.ClaimRequest) error {
					return store.Clear(t.Context(), org)
				},
			} {
				org := m.newTenant(t)
				req := claimRequest(org, "key")
				mustClaim(t, m.informed, req, idempotency.OutcomeClaimed)
				other := claimRequest(org, "key")
				if err := do(t, org, other); err != nil {
					t.Errorf("%s: %v", operation, err)
				}
			}
		})
	}
}

// TestFollowWhatHasBegun: a process that was paused while its tenant moved brings what it had
// begun to its end.
func TestFollowWhatHasBegun(t *testing.T) {
	t.Parallel()
	m := newMoves(t)
	ctx := t.Context()
	for name, do := range map[string]func(idempotency.Claim) error{
		"Complete": func(c idempotency.Claim) error {
			err := m.store.Complete(ctx, c, &idempotency.Record{ResponseStatus: 201})
			if _, getErr := m.informed.Get(ctx, c.OrgID, c.Key); getErr != nil {
				t.Error(getErr)
			}
			return err
		},
		"Extend":  func(c idempotency.Claim) error { return m.store.Extend(ctx, c, time.Hour) },
		"Release": func(c idempotency.Claim) error { return m.store.Release(ctx, c) },
		"LoadStep": func(c idempotency.Claim) error {
			if _, err := m.informed.SaveStep(ctx, c, "step", []byte(`1`)); err != nil {
				t.Error(err)
			}
			result, found, err := m.store.LoadStep(ctx, c, "step")
			if err == nil && (!found || string(result) != `1`) {
				t.Errorf("%q, %t", result, found)
			}
			return err
		},
		"SaveStep": func(c idempotency.Claim) error {
			_, err := m.store.SaveStep(ctx, c, "step", []byte(`1`))
			return err
		},
	} {
		for _, suspended := range []bool{false, true} {
			for _, kept := range []bool{false, true} {
				req := claimRequest(m.newTenant(t), "key")
				if kept {
					req.Kept, req.Request = true, &idempotency.KeptRequest{Method: "POST", Target: "/"}
				}
				mustClaim(t, m.informed, req, idempotency.OutcomeClaimed)
				if suspended && (name == "LoadStep" || name == "Complete") {
					continue // which ask the informed process what it does not say then
				}
				m.dir.known.Suspend(req.OrgID, suspended)
				if err := do(req.Claim); err != nil {
					t.Errorf("%s, suspended where it is %t, kept %t: %v", name, suspended, kept, err)
				}
			}
		}
	}
	// The answer to a commit was lost.
	req := claimRequest(m.newTenant(t), "key")
	mustClaim(t, m.informed, req, idempotency.OutcomeClaimed)
	mustComplete(t, m.informed, req.Claim)
	inTx := m.store.Transactional().(idempotency.LeaseStore)
	if err := inTx.Complete(ctx, req.Claim, &idempotency.Record{ResponseStatus: 201}); err != nil {
		t.Errorf("a commit that happened: %v", err)
	}
	m.forget(t, req.OrgID)
	never := claimRequest(req.OrgID, "never")
	if err := inTx.Complete(ctx, never.Claim, &idempotency.Record{ResponseStatus: 201}); !errors.Is(err, idempotency.ErrRolledBack) {
		t.Errorf("a commit that did not happen: %v", err)
	}
	m.forget(t, req.OrgID)
	never.Kept = true
	if err := inTx.Release(ctx, never.Claim); !errors.Is(err, idempotency.ErrLeaseLost) {
		t.Errorf("a claim whose answer was lost: %v", err)
	}
}

// TestFollowNowhere: what a process answers that cannot do anything where the tenant is.
func TestFollowNowhere(t *testing.T) {
	t.Parallel()
	m := newMoves(t)
	const onItsWay = "on its way"
	inA := func(org uuid.UUID) tenancy.Placement {
		return tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "a"}
	}
	for name, c := range map[string]struct {
		arrange func(org uuid.UUID)
		unknown bool
		says    string
	}{
		"it is being moved":             {arrange: func(org uuid.UUID) { m.dir.known.Set(org, inA(org)); m.dir.known.Suspend(org, true) }, says: onItsWay},
		"the directory cannot be asked": {arrange: func(uuid.UUID) { m.dir.cut.Store(true) }, says: onItsWay},
		"it went on":                    {arrange: func(org uuid.UUID) { clearAway(t, m.b, org) }, says: onItsWay},
		"it is in another's cluster": {arrange: func(org uuid.UUID) {
			m.dir.known.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org), Cluster: "c"})
		}, says: `no pools for cluster "c"`},
		"it never had tables": {arrange: func(org uuid.UUID) { m.dir.known.Set(org, inA(org)) }, unknown: true, says: "run migrations.Up"},
	} {
		org := m.newTenant(t)
		c.arrange(org)
		for mode, store := range map[string]idempotency.LeaseStore{"lease": m.store, "transaction": m.store.Transactional().(idempotency.LeaseStore)} {
			m.forget(t, org)
			req := claimRequest(org, "key")
			_, err := store.Claim(t.Context(), req)
			if errors.Is(err, tenancy.ErrUnknownTenant) != c.unknown || errors.Is(err, idempotency.ErrStoreRefused) == c.unknown || errors.Is(err, tenancy.ErrSuspendedTenant) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: Claim, %s: %v", name, mode, err)
			}
			m.forget(t, org)
			err = store.Complete(t.Context(), req.Claim, &idempotency.Record{ResponseStatus: 201})
			final := errors.Is(err, idempotency.ErrStoreRefused) || errors.Is(err, tenancy.ErrUnknownTenant) || errors.Is(err, tenancy.ErrSuspendedTenant) || errors.Is(err, idempotency.ErrRolledBack)
			if err == nil || final == (c.says == onItsWay) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: Complete, %s: %v", name, mode, err)
			}
		}
		m.forget(t, org)
		ran := false
		handler := idempotency.Require(m.store, idempotency.WithFailOpen(), idempotency.WithLogger(slog.New(slog.DiscardHandler)))(
			http.HandlerFunc(func(http.ResponseWriter, *http.Request) { ran = true }))
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		r = r.WithContext(idempotency.WithOrgID(r.Context(), org))
		r.Header.Set(idempotency.HeaderKey, "key")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		status := http.StatusServiceUnavailable
		if c.unknown {
			status = http.StatusForbidden
		}
		if w.Code != status || ran || c.unknown != strings.Contains(w.Body.String(), "unknown_tenant") || !c.unknown && w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %s, Retry-After %q, ran %t", name, w.Code, w.Body, w.Header().Get("Retry-After"), ran)
		}
		m.dir.cut.Store(false)
	}
}

func clearAway(t *testing.T, pool *pgxpool.Pool, org uuid.UUID) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `DROP SCHEMA `+storetest.SchemaOf(t, org).Quoted()+` CASCADE`); err != nil {
		t.Fatal(err)
	}
}

// TestFollowLooksOnce: a tenant that has a table, and lacks what a later migration adds, is
// not looked for elsewhere, and neither is one whose statement fails for another reason.
func TestFollowLooksOnce(t *testing.T) {
	t.Parallel()
	m := newMoves(t)
	org := storetest.NewTenant(t, m.a)
	m.forget(t, org)
	if _, err := m.a.Exec(t.Context(), `DROP TABLE `+storetest.SchemaOf(t, org).Quoted()+`.idempotency_requests`); err != nil {
		t.Fatal(err)
	}
	req := claimRequest(org, "key")
	req.Kept, req.Request = true, &idempotency.KeptRequest{Method: "POST", Target: "/"}
	if _, err := m.store.Claim(t.Context(), req); !errors.Is(err, idempotency.ErrStoreRefused) || !strings.Contains(err.Error(), "older") {
		t.Errorf("Claim: %v", err)
	}
	if _, err := m.store.Get(t.Context(), org, "nothing"); !errors.Is(err, idempotency.ErrNotFound) {
		t.Errorf("Get: %v", err)
	}
	if n := m.dir.looks.Load(); n != 0 {
		t.Errorf("it was looked for %d times", n)
	}
	gone := m.newTenant(t)
	clearAway(t, m.b, gone)
	if _, err := m.store.Claim(t.Context(), claimRequest(gone, "key")); err == nil || m.dir.looks.Load() != 1 {
		t.Errorf("%v after %d looks; want one", err, m.dir.looks.Load())
	}
}

// takenBack is a directory whose tenant's move is taken back just before it looks anew.
type takenBack struct {
	storetest.Placements
	takeBack func()
}

func (d *takenBack) Refresh(ctx context.Context, org uuid.UUID) (tenancy.Placement, error) {
	d.takeBack()
	return d.Place(ctx, org)
}

// TestFollowAMoveTakenBack: what met no table is done where it was tried when the tenant is
// there again.
func TestFollowAMoveTakenBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.NewPool(t)
	dir := new(takenBack)
	plain, err := pgstore.New(pool, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plain.Close)
	rename := func(from, to string) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), `ALTER SCHEMA `+from+` RENAME TO `+to); err != nil {
			t.Error(err)
		}
	}
	for name, mode := range modes {
		store := mode(plain).(idempotency.LeaseStore)
		for operation, do := range map[string]func(idempotency.Claim) error{
			"Claim": func(c idempotency.Claim) error {
				req := claimRequest(c.OrgID, "another")
				if _, err := store.Claim(t.Context(), req); err != nil {
					return err
				}
				return store.Release(t.Context(), req.Claim)
			},
			// In a transaction, of one whose commit was not answered.
			"Complete": func(c idempotency.Claim) error {
				err := store.Complete(t.Context(), c, &idempotency.Record{ResponseStatus: 201})
				if errors.Is(err, idempotency.ErrRolledBack) {
					return nil
				}
				return err
			},
			"Get": func(c idempotency.Claim) error {
				if _, err := store.Get(t.Context(), c.OrgID, c.Key); !errors.Is(err, idempotency.ErrNotFound) {
					return err
				}
				return nil
			},
		} {
			org := storetest.NewTenant(t, pool)
			there := storetest.SchemaOf(t, org).Quoted()
			dir.Set(org, tenancy.Placement{Schema: storetest.SchemaOf(t, org)})
			req := claimRequest(org, "key")
			mustClaim(t, plain, req, idempotency.OutcomeClaimed)
			dir.takeBack = func() { rename("fenced", there) }
			rename(there, "fenced")
			if err := do(req.Claim); err != nil {
				t.Errorf("%s, %s: %v", operation, name, err)
			}
		}
	}
}
