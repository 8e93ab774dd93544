package move_test

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency"
	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy/move"
	"github.com/pgidem/pgidem/tenancy/registry"
)

// shop is a service with several processes, as far as databases can tell: each has pools and
// a registry of its own.
type shop struct {
	handlers []http.Handler
	charged  sync.Map // how often, by org and key: outside of any database
	answers  sync.Map // to what each request was answered with first
}

// request is what a client sends, as often as it likes.
type request struct {
	org       uuid.UUID
	path, key string
}

const (
	byLease       = "/lease"
	byTransaction = "/transaction"
)

func (w *world) newShop(t *testing.T, processes int) *shop {
	t.Helper()
	s := new(shop)
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	for range processes {
		clusters := pgstore.Clusters{}
		for name, url := range w.urls {
			config, err := pgxpool.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.MaxConns = 6
			pools, err := pgstore.NewPools(t.Context(), config, 2)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pools.Close)
			clusters[name] = pools
		}
		tenants, err := registry.New(w.pools["a"])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tenants.Close)
		store, err := pgstore.NewRouted(clusters, tenants)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(store.Close)
		mux := http.NewServeMux()
		mux.Handle(byLease, idempotency.Require(store, quiet)(http.HandlerFunc(s.charge)))
		mux.Handle(byTransaction, idempotency.Require(store.Transactional(), quiet)(http.HandlerFunc(s.pay)))
		s.handlers = append(s.handlers, mux)
	}
	return s
}

// charge has an effect that no database can take back.
func (s *shop) charge(w http.ResponseWriter, r *http.Request) {
	org, _ := idempotency.FromContext(r.Context())
	key, _ := idempotency.Key(r.Context())
	time.Sleep(time.Duration(rand.Int64N(int64(30 * time.Millisecond)))) // the bank takes its time
	n, _ := s.charged.LoadOrStore(org.String()+key, new(atomic.Int64))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, "charged ", key, " ", n.(*atomic.Int64).Add(1))
}

// pay writes into the tenant's own table.
func (s *shop) pay(w http.ResponseWriter, r *http.Request) {
	tx, _ := pgstore.Tx(r.Context())
	key, _ := idempotency.Key(r.Context())
	if _, err := tx.Exec(r.Context(), `INSERT INTO paid (key) VALUES ($1)`, key); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond))))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, "paid ", key)
}

// send sends a request to any of the processes, once.
func (s *shop) send(q request) (status int, body string, replayed bool) {
	r := httptest.NewRequest(http.MethodPost, q.path, strings.NewReader(`{"amount":1}`))
	r = r.WithContext(idempotency.WithOrgID(r.Context(), q.org))
	r.Header.Set(idempotency.HeaderKey, q.key)
	w := httptest.NewRecorder()
	s.handlers[rand.IntN(len(s.handlers))].ServeHTTP(w, r)
	text, _ := io.ReadAll(w.Body)
	return w.Code, string(text), w.Header().Get("Idempotency-Replayed") == "true"
}

// sendUntil sends a request until it is answered with 201. It returns how often it was refused
// before, and ok tells whether it was answered in time.
func (s *shop) sendUntil(t *testing.T, q request) (body string, replayed bool, refused int, ok bool) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		status, body, replayed := s.send(q)
		if status == http.StatusCreated {
			return body, replayed, refused, true
		}
		refused++
		if time.Now().After(deadline) {
			t.Errorf("%s: still %d %s", q.key, status, body)
			return body, false, refused, false
		}
		if strings.Contains(body, "unknown_tenant") {
			t.Errorf("%s: a tenant that moves is not unknown: %s", q.key, body)
		}
		if status != http.StatusForbidden && status != http.StatusConflict && status != http.StatusServiceUnavailable {
			t.Errorf("%s: %d %s", q.key, status, body)
		}
	}
}

// post sends a request to any of the processes until it is answered with 201, and once more
// to see the same answer. It returns how often it was refused.
func (s *shop) post(t *testing.T, q request) (refused int) {
	body, _, refused, ok := s.sendUntil(t, q)
	if !ok {
		return refused
	}
	s.answers.Store(q, body)
	if again, replay, _ := s.send(q); again == http.StatusCreated && replay != body {
		t.Errorf("%s and then %s", body, replay)
	}
	return refused
}

// sendAgain sends each request again that was answered, to see the answer that it had.
func (s *shop) sendAgain(t *testing.T) (sent int) {
	var clients sync.WaitGroup
	turns := make(chan struct{}, 8)
	s.answers.Range(func(q, first any) bool {
		sent++
		turns <- struct{}{}
		clients.Go(func() {
			defer func() { <-turns }()
			if body, replayed, _, ok := s.sendUntil(t, q.(request)); ok && (body != first || !replayed) {
				t.Errorf("%s, and %s when all was over (replayed: %t)", first, body, replayed)
			}
		})
		return true
	})
	clients.Wait()
	return sent
}

// TestMoveUnderLoad: a tenant moves from server to server while its clients pay, and others'
// do; each payment happens once, and others are never refused. What was answered before and
// between the moves is answered the same after them.
func TestMoveUnderLoad(t *testing.T) {
	t.Parallel()
	w := newWorldOfServers(t)
	moved := w.newTenant(t, "a")
	tenants := []registry.Tenant{moved, w.newTenant(t, "a"), w.newTenant(t, "b")}
	for _, tenant := range tenants {
		w.exec(t, tenant.Cluster, `CREATE TABLE `+tenant.Schema.Quoted()+`.paid (key text NOT NULL)`)
	}
	s := w.newShop(t, 2)
	var paid [3][2]atomic.Int64 // by tenant and path
	var refused [3]atomic.Int64
	done := make(chan struct{})
	var clients sync.WaitGroup
	for i, tenant := range tenants {
		for client := range 4 {
			path := []string{byLease, byTransaction}[client%2]
			clients.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					default:
						refused[i].Add(int64(s.post(t, request{tenant.OrgID, path, fmt.Sprintf("%d-%d", client, n)})))
						paid[i][client%2].Add(1)
					}
				}
			})
		}
	}
	at := "a"
	for range setting(t, "PGIDEM_MOVES", 3) {
		to := map[string]string{"a": "b", "b": "c", "c": "a"}[at]
		before := paid[0][0].Load() + paid[0][1].Load()
		for deadline := time.Now().Add(30 * time.Second); paid[0][0].Load()+paid[0][1].Load() < before+20; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the tenant is not served")
			}
		}
		m := w.mover(t, move.WithSettle(move.Settle))
		report, err := m.Move(t.Context(), moved.OrgID, to)
		if err != nil {
			t.Error(err)
			break
		}
		at = to
		t.Logf("to %s: away for %s", to, report.Away)
	}
	close(done)
	clients.Wait()
	var answered int64
	for i := range paid {
		answered += paid[i][0].Load() + paid[i][1].Load()
	}
	if sent := int64(s.sendAgain(t)); sent != answered { // before the payments are counted
		t.Errorf("%d requests were sent again, and the clients know of %d", sent, answered)
	}
	for i, tenant := range tenants {
		now, err := w.tenants.Tenant(t.Context(), tenant.OrgID)
		if err != nil {
			t.Fatal(err)
		}
		var payments, keys int64
		if err := w.pools[now.Cluster].QueryRow(t.Context(), `SELECT count(*), count(DISTINCT key) FROM `+tenant.Schema.Quoted()+`.paid`).Scan(&payments, &keys); err != nil {
			t.Fatal(err)
		}
		if want := paid[i][1].Load(); payments != want || keys != want || want == 0 {
			t.Errorf("tenant %d: %d payments of %d keys, and the clients know of %d", i, payments, keys, want)
		}
		var charges, charged int64
		s.charged.Range(func(key, n any) bool {
			if strings.HasPrefix(key.(string), tenant.OrgID.String()) {
				charges, charged = charges+n.(*atomic.Int64).Load(), charged+1
			}
			return true
		})
		if want := paid[i][0].Load(); charges != want || charged != want || want == 0 {
			t.Errorf("tenant %d: %d charges for %d keys, and the clients know of %d", i, charges, charged, want)
		}
		if n := refused[i].Load(); i > 0 && n > 0 {
			t.Errorf("tenant %d was refused %d times while another moved", i, n)
		}
		t.Logf("tenant %d: %d charged, %d paid, refused %d times", i, charges, payments, refused[i].Load())
	}
	w.is(t, moved, at, registry.Active)
}
