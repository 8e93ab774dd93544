package idempotency_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// roundTripper is a base that does what a test wants.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// ok is a base that sends nothing and succeeds.
func ok(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// payments is a service behind Require whose connection breaks after it has handled
// a request, as often as breaks says.
type payments struct {
	*httptest.Server
	breaks atomic.Int64
	runs   atomic.Int64

	mu    sync.Mutex
	lines []string // of keys, one for each request that reached the server
	read  []string // the keys that the handler was told
}

func (s *payments) note(list *[]string, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*list = append(*list, key)
}

// keys returns, and forgets, the key lines and the keys that Require read from them.
func (s *payments) keys() (lines, read []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, read, s.lines, s.read = s.lines, s.read, nil, nil
	return lines, read
}

// wantOperation checks that so many requests came, with one key, for one run.
func (s *payments) wantOperation(t testing.TB, requests int) {
	t.Helper()
	lines, _ := s.keys()
	if len(lines) != requests || lines[0] == "" || len(slices.Compact(slices.Clone(lines))) != 1 || s.runs.Load() != 1 {
		t.Errorf("%d runs, key lines %q; want 1 run, %d times one key", s.runs.Load(), lines, requests)
	}
}

func newPayments(t testing.TB, opts ...idempotency.Option) *payments {
	t.Helper()
	s := &payments{}
	mux := http.NewServeMux()
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/payments", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if key, ok := idempotency.Key(r.Context()); ok {
			s.note(&s.read, key)
		}
		w.Header().Set("Announced-Length", strconv.FormatInt(r.ContentLength, 10))
		w.WriteHeader(http.StatusCreated)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "payment %d of %s", s.runs.Add(1), body)
	})
	h := authenticate(idempotency.Require(idempotency.NewMemoryStore(), opts...)(mux))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.note(&s.lines, strings.Join(r.Header[idempotency.HeaderKey], " | "))
		if s.breaks.Add(-1) >= 0 {
			h.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// client returns a client whose requests go through tr and then over connections
// that end with the test.
func client(t testing.TB, tr *idempotency.Transport) *http.Client {
	t.Helper()
	if tr.Base == nil {
		tr.Base = &http.Transport{}
	}
	c := &http.Client{Transport: tr}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// retrying is a base that repeats a round trip, up to three times.
func retrying(base http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (resp *http.Response, err error) {
		for range 3 {
			try := r.Clone(r.Context())
			if r.GetBody != nil {
				try.Body, _ = r.GetBody()
			}
			if resp, err = base.RoundTrip(try); err == nil {
				return resp, nil
			}
		}
		return nil, err
	})
}

// newRequest panics where it cannot make the request, like [httptest.NewRequest].
func newRequest(ctx context.Context, method, url, body string) *http.Request {
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		panic(err)
	}
	return r
}

type answer struct {
	status   int
	body     string
	replayed bool
	header   http.Header
	sent     string // the key line of the request that the response refers to
}

func do(t testing.TB, c *http.Client, r *http.Request) answer {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func read(t testing.TB, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{
		resp.StatusCode, string(body), resp.Header.Get("Idempotency-Replayed") == "true",
		resp.Header, resp.Request.Header.Get(idempotency.HeaderKey),
	}
}

func (a answer) want(t testing.TB, status int, body string, replayed bool) {
	t.Helper()
	if a.status != status || a.body != body || a.replayed != replayed {
		t.Errorf("got %d %q (replayed: %t), want %d %q (replayed: %t)", a.status, a.body, a.replayed, status, body, replayed)
	}
}

func TestTransportZeroValueAddsARandomUUID(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	c := &http.Client{Transport: &idempotency.Transport{}}
	var sent []string
	for i := range 2 {
		a := do(t, c, newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR"))
		a.want(t, http.StatusCreated, fmt.Sprintf("payment %d of 10 EUR", i+1), false)
		if got := a.header.Get("Announced-Length"); got != "6" {
			t.Errorf("the body's length arrived as %s, want 6", got)
		}
		if id, err := uuid.Parse(a.sent); err != nil || id.Version() != 4 || id.String() != a.sent {
			t.Errorf("key %q is not a random UUID", a.sent)
		}
		sent = append(sent, a.sent)
	}
	lines, _ := s.keys()
	if sent[0] == sent[1] || !slices.Equal(lines, sent) {
		t.Errorf("the responses refer to the keys %q, the service got %q; want the same two", sent, lines)
	}
}

// What gets a key by default is what Require takes one from by default.
func TestTransportMethodsAreThoseOfRequire(t *testing.T) {
	t.Parallel()
	s := newPayments(t, idempotency.WithRequireKey())
	c := client(t, &idempotency.Transport{})
	for _, method := range []string{
		http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace,
		http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, "PURGE",
	} {
		if a := do(t, c, newRequest(t.Context(), method, s.URL, "")); a.status != http.StatusCreated {
			t.Errorf("%s: status %d: Require wants a key and Transport gave none", method, a.status)
		}
		lines, read := s.keys()
		if sent, taken := lines[0] != "", len(read) == 1; sent != taken {
			t.Errorf("%s: key sent: %t, key taken: %t", method, sent, taken)
		}
	}
}

func TestTransportMethodsCanBeChosen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		methods []string
		method  string
		keyed   bool
	}{
		{[]string{"PUT", "PURGE"}, "PUT", true},
		{[]string{"PUT", "PURGE"}, "PURGE", true},
		{[]string{"PUT", "PURGE"}, "POST", false},
		{[]string{"PUT", "PURGE"}, "", false},
		{[]string{}, "POST", true},
		{nil, "", false},
		{nil, "post", false}, // methods are case-sensitive
		{[]string{"GET"}, "", true},
	} {
		tr := &idempotency.Transport{Base: roundTripper(ok), Methods: c.methods}
		r := newRequest(t.Context(), http.MethodGet, "http://service.test", "")
		r.Method = c.method
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if keyed := resp.Request.Header[idempotency.HeaderKey] != nil; keyed != c.keyed {
			t.Errorf("methods %q: %q got a key: %t, want %t", c.methods, c.method, keyed, c.keyed)
		}
	}
}

func TestTransportPassesOnWhatIsNotItsAffair(t *testing.T) {
	t.Parallel()
	keyed := func(lines []string) func(*http.Request) {
		return func(r *http.Request) { r.Header[idempotency.HeaderKey] = lines }
	}
	for name, change := range map[string]func(*http.Request){
		"a key of the caller's":  keyed([]string{"mine"}),
		"two lines":              keyed([]string{"a", "b"}),
		"an empty line":          keyed([]string{""}),
		"an entry without lines": keyed([]string{}),
		"a nil entry":            keyed(nil),
		"a safe method":          func(r *http.Request) { r.Method = http.MethodGet },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *http.Request
			tr := &idempotency.Transport{Base: roundTripper(func(r *http.Request) (*http.Response, error) {
				got = r
				return ok(r)
			})}
			ctx := idempotency.WithOutgoingKey(t.Context(), "") // would be an error
			r := newRequest(ctx, http.MethodPost, "http://service.test", "x")
			change(r)
			before := maps.Clone(r.Header)
			if _, err := tr.RoundTrip(r); err != nil {
				t.Fatal(err)
			}
			if got != r || !maps.EqualFunc(r.Header, before, slices.Equal) {
				t.Errorf("the request was not passed on untouched: header %v, before %v", got.Header, before)
			}
		})
	}
}

func TestTransportDoesNotModifyTheRequest(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	tr := &idempotency.Transport{}
	client(t, tr)
	r := newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR")
	r.Header.Set("Authorization", "Bearer x")
	before, header := *r, r.Header.Clone()
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	read(t, resp)
	if !maps.EqualFunc(r.Header, header, slices.Equal) {
		t.Errorf("the caller's header became %v, was %v", r.Header, header)
	}
	if r.URL != before.URL || r.Body != before.Body || r.ContentLength != before.ContentLength || r.Context() != before.Context() {
		t.Error("the caller's request was changed")
	}
	s.wantOperation(t, 1)
}

// Many requests may share a Header, and are operations of their own nonetheless.
func TestTransportIsConcurrentOverASharedHeader(t *testing.T) {
	t.Parallel()
	const n = 20
	s := newPayments(t)
	c := client(t, &idempotency.Transport{})
	header := http.Header{"Authorization": {"Bearer x"}}
	shared := newRequest(t.Context(), http.MethodPost, s.URL, "")
	shared.Header = header
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			resp, err := c.Do(shared.WithContext(t.Context())) // the same Header and URL
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
	}
	wg.Wait()
	if len(header) != 1 {
		t.Errorf("the shared header became %v", header)
	}
	lines, _ := s.keys()
	slices.Sort(lines)
	if keys := slices.Compact(lines); len(keys) != n || s.runs.Load() != n {
		t.Errorf("%d operations had %d keys and %d runs", n, len(keys), s.runs.Load())
	}
}

func TestTransportTakesARequestWithoutHeaderOrBody(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	tr := &idempotency.Transport{}
	client(t, tr)
	r := newRequest(t.Context(), http.MethodDelete, s.URL, "")
	r.Header, r.Body = nil, nil
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	read(t, resp).want(t, http.StatusCreated, "payment 1 of ", false)
	s.wantOperation(t, 1)
	if r.Header != nil {
		t.Errorf("the caller's header became %v", r.Header)
	}
}

// oddKeys are keys that a header line does not carry as they are, or might not.
var oddKeys = []string{
	"plain", `"quoted"`, `"`, `""`, `"open`, `"a";b=c`, `"\`, `"\"`, `mid"dle`, `end"`, `back\slash`, `\"`,
	" leading", "trailing ", " ", "  ", `" `, "in the middle", "a, b", ",", "a;b=c", ":YWJj:", "?1", "*", "-1", "()",
	strings.Repeat("k", 255), strings.Repeat(`"`, 255), strings.Repeat(" ", 255), printable(),
}

func printable() string {
	var b strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}

var impossibleKeys = []string{"", strings.Repeat("k", 256), "schlüssel", "a\nb", "\x00", "tab\t", "\x7f", "\"\x1f", "\xff"}

func TestOutgoingKeyIsWhatTheServerReads(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	c := client(t, &idempotency.Transport{})
	for _, key := range oddKeys {
		ctx := idempotency.WithOutgoingKey(t.Context(), key)
		do(t, c, newRequest(ctx, http.MethodPost, s.URL, ""))
		if lines, read := s.keys(); !slices.Equal(read, []string{key}) {
			t.Errorf("key %q as %q was read as %q", key, lines, read)
		}
	}
}

// A key is sent bare where that is unambiguous: there are services that take the
// quotes for a part of the key.
func TestOutgoingKeyIsQuotedOnlyWhereItMustBe(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{
		"plain":   "plain",
		`mid"dle`: `mid"dle`,
		`a\b c,d`: `a\b c,d`,
		`"a\b"`:   `"\"a\\b\""`,
		" a":      `" a"`,
		"a ":      `"a "`,
	} {
		tr := &idempotency.Transport{Base: roundTripper(ok), NewKey: func() string { return key }}
		resp, err := tr.RoundTrip(newRequest(t.Context(), http.MethodPost, "http://service.test", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Request.Header[idempotency.HeaderKey]; !slices.Equal(got, []string{want}) {
			t.Errorf("key %q went out as %q, want %q", key, got, want)
		}
	}
}

func FuzzOutgoingKey(f *testing.F) {
	for _, key := range slices.Concat(oddKeys, impossibleKeys) {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		tr := &idempotency.Transport{Base: roundTripper(ok)}
		ctx := idempotency.WithOutgoingKey(t.Context(), key)
		resp, err := tr.RoundTrip(newRequest(ctx, http.MethodPost, "http://service.test", ""))
		valid := key != "" && len(key) <= 255 && !strings.ContainsFunc(key, func(c rune) bool { return c < ' ' || c > '~' })
		if (err == nil) != valid {
			t.Fatalf("key %q: error %v, want one: %t", key, err, !valid)
		}
		if err != nil {
			return
		}
		line := textproto.TrimString(resp.Request.Header.Get(idempotency.HeaderKey)) // as the wire does
		if got, err := idempotency.ParseKey([]string{line}); err != nil || got != key {
			t.Fatalf("key %q as %s was read as %q, error %v", key, line, got, err)
		}
	})
}

// closed is a body that knows whether it was closed.
type closed struct {
	io.Reader
	times int
}

func (c *closed) Close() error {
	c.times++
	return nil
}

func TestTransportRefusesAnImpossibleKey(t *testing.T) {
	t.Parallel()
	for source, attempt := range map[string]func(ctx context.Context, key string) (context.Context, func() string){
		"WithOutgoingKey": func(ctx context.Context, key string) (context.Context, func() string) {
			return idempotency.WithOutgoingKey(ctx, key), nil
		},
		"NewKey": func(ctx context.Context, key string) (context.Context, func() string) {
			return ctx, func() string { return key }
		},
		"NewKey for a context": func(ctx context.Context, key string) (context.Context, func() string) {
			return idempotency.WithFreshOutgoingKey(ctx), func() string { return key }
		},
	} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			for _, key := range impossibleKeys {
				ctx, newKey := attempt(t.Context(), key)
				tr := &idempotency.Transport{NewKey: newKey, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
					t.Errorf("key %q was sent", key)
					return ok(r)
				})}
				body := &closed{Reader: strings.NewReader("x")}
				r := newRequest(ctx, http.MethodPost, "http://service.test", "")
				r.Body = body
				resp, err := tr.RoundTrip(r)
				option, _, _ := strings.Cut(source, " ")
				if resp != nil || !errors.Is(err, idempotency.ErrKeyInvalid) || !strings.Contains(err.Error(), option) {
					t.Errorf("key %q: got %v and error %v, want one that names %s", key, resp, err, option)
				}
				if body.times != 1 {
					t.Errorf("key %q: the body was closed %d times", key, body.times)
				}
				r.Body = nil
				if _, err := (&http.Client{Transport: tr}).Do(r); !errors.Is(err, idempotency.ErrKeyInvalid) {
					t.Errorf("key %q: a client returned %v", key, err)
				}
			}
		})
	}
}

func TestTransportInsideRetriesHaveOneKey(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	s.breaks.Store(2)
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	c := client(t, &idempotency.Transport{Base: retrying(base)})
	do(t, c, newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR")).want(t, http.StatusCreated, "payment 1 of 10 EUR", true)
	s.wantOperation(t, 3)
	do(t, c, newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR")).want(t, http.StatusCreated, "payment 2 of 10 EUR", false)
}

// outerRetries are retrying clients that call Transport anew for each try.
var outerRetries = map[string]func(c *http.Client, r *http.Request) (*http.Response, error){
	"of the same request": func(c *http.Client, r *http.Request) (resp *http.Response, err error) {
		for range 3 {
			if r.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
			if resp, err = c.Do(r); err == nil {
				break
			}
		}
		return resp, err
	},
	"of clones": func(c *http.Client, r *http.Request) (resp *http.Response, err error) {
		type tryKey struct{}
		for i := range 3 {
			try := r.Clone(context.WithValue(r.Context(), tryKey{}, i))
			if try.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
			if resp, err = c.Do(try); err == nil {
				break
			}
		}
		return resp, err
	},
}

func TestTransportOutsideRetriesHaveTheKeyOfTheOperation(t *testing.T) {
	t.Parallel()
	for way, operation := range map[string]func(*http.Request) *http.Request{
		"WithOutgoingKey": func(r *http.Request) *http.Request {
			return r.WithContext(idempotency.WithOutgoingKey(r.Context(), "payment 17 "))
		},
		"WithFreshOutgoingKey": func(r *http.Request) *http.Request {
			return r.WithContext(idempotency.WithFreshOutgoingKey(r.Context()))
		},
		"header": func(r *http.Request) *http.Request {
			r.Header.Set(idempotency.HeaderKey, "payment-17")
			return r
		},
	} {
		for how, send := range outerRetries {
			t.Run(way+" and retries "+how, func(t *testing.T) {
				t.Parallel()
				s := newPayments(t)
				s.breaks.Store(1)
				c := client(t, &idempotency.Transport{})
				r := operation(newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR"))
				resp, err := send(c, r)
				if err != nil {
					t.Fatal(err)
				}
				read(t, resp).want(t, http.StatusCreated, "payment 1 of 10 EUR", true)
				s.wantOperation(t, 2)
			})
		}
	}
}

// The other side of the decision: what nobody has called one operation is two.
func TestTransportTakesEqualRequestsForTwoOperations(t *testing.T) {
	t.Parallel()
	for how, send := range outerRetries {
		t.Run("retries "+how, func(t *testing.T) {
			t.Parallel()
			s := newPayments(t)
			s.breaks.Store(1)
			resp, err := send(client(t, &idempotency.Transport{}), newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR"))
			if err != nil {
				t.Fatal(err)
			}
			read(t, resp).want(t, http.StatusCreated, "payment 2 of 10 EUR", false)
			if lines, _ := s.keys(); len(lines) != 2 || slices.Contains(lines, "") || lines[0] == lines[1] {
				t.Errorf("key lines %q, want two different ones", lines)
			}
		})
	}
}

func TestWithFreshOutgoingKeyIsMadeOnce(t *testing.T) {
	t.Parallel()
	const n = 50
	s := newPayments(t)
	var made atomic.Int64
	c := client(t, &idempotency.Transport{NewKey: func() string { return fmt.Sprint("key ", made.Add(1)) }})
	ctx := idempotency.WithFreshOutgoingKey(t.Context())
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			derived, cancel := context.WithCancel(ctx)
			defer cancel()
			resp, err := c.Do(newRequest(derived, http.MethodPost, s.URL, ""))
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		})
	}
	wg.Wait()
	s.wantOperation(t, n)
	if made.Load() != 1 {
		t.Errorf("%d keys were made for one operation", made.Load())
	}
}

func TestOutgoingKeyOfTheInnermostContextCounts(t *testing.T) {
	t.Parallel()
	made := 0
	tr := &idempotency.Transport{Base: roundTripper(ok), NewKey: func() string {
		made++
		return fmt.Sprint("made-", made)
	}}
	sent := func(ctx context.Context) string {
		t.Helper()
		resp, err := tr.RoundTrip(newRequest(ctx, http.MethodPost, "http://service.test", ""))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Request.Header.Get(idempotency.HeaderKey)
	}
	given := idempotency.WithOutgoingKey(t.Context(), "given")
	fresh := idempotency.WithFreshOutgoingKey(given)
	other := idempotency.WithFreshOutgoingKey(fresh)
	back := idempotency.WithOutgoingKey(other, "back")
	for _, c := range []struct {
		ctx  context.Context
		want string
	}{
		{given, "given"},
		{fresh, "made-1"},
		{other, "made-2"},
		{fresh, "made-1"},
		{back, "back"},
		{t.Context(), "made-3"},
		{t.Context(), "made-4"},
		{given, "given"},
	} {
		if got := sent(c.ctx); got != c.want {
			t.Errorf("key %q, want %q", got, c.want)
		}
	}
}

func TestWithFreshOutgoingKeyAsksAgainAfterAnImpossibleKey(t *testing.T) {
	t.Parallel()
	keys := []string{"", "good"} // a third call would panic
	tr := &idempotency.Transport{Base: roundTripper(ok), NewKey: func() (key string) {
		key, keys = keys[0], keys[1:]
		return key
	}}
	r := newRequest(idempotency.WithFreshOutgoingKey(t.Context()), http.MethodPost, "http://service.test", "")
	if _, err := tr.RoundTrip(r); !errors.Is(err, idempotency.ErrKeyInvalid) {
		t.Fatalf("error %v for an empty key", err)
	}
	for range 2 {
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Request.Header.Get(idempotency.HeaderKey); got != "good" {
			t.Errorf("key %q, want good", got)
		}
	}
}

func TestTransportDoesNotHandOnTheKeyOfAnIncomingRequest(t *testing.T) {
	t.Parallel()
	behind := newPayments(t)
	c := client(t, &idempotency.Transport{})
	front := httptest.NewServer(authenticate(idempotency.Require(idempotency.NewMemoryStore())(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fresh := idempotency.WithFreshOutgoingKey(r.Context())
			for _, ctx := range []context.Context{r.Context(), fresh, fresh, idempotency.WithOutgoingKey(r.Context(), "own")} {
				resp, err := c.Do(newRequest(ctx, http.MethodPost, behind.URL, "x"))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			incoming, _ := idempotency.Key(r.Context())
			io.WriteString(w, incoming)
		}))))
	t.Cleanup(front.Close)
	ctx := idempotency.WithOutgoingKey(t.Context(), "of the front")
	do(t, c, newRequest(ctx, http.MethodPost, front.URL, "")).want(t, http.StatusOK, "of the front", false)
	got, _ := behind.keys()
	if len(got) != 4 || slices.Contains(got, "") || slices.Contains(got, "of the front") {
		t.Fatalf("keys behind: %q", got)
	}
	if got[0] == got[1] || got[1] != got[2] || got[3] != "own" {
		t.Errorf("keys behind: %q; want a fresh one, another one twice, own", got)
	}
}

func TestTransportOverARedirect(t *testing.T) {
	t.Parallel()
	t.Run("by default each hop has a key", func(t *testing.T) {
		t.Parallel()
		s := newPayments(t)
		c := client(t, &idempotency.Transport{})
		do(t, c, newRequest(t.Context(), http.MethodPost, s.URL+"/moved", "10 EUR")).want(t, http.StatusCreated, "payment 1 of 10 EUR", false)
		if lines, _ := s.keys(); len(lines) != 2 || slices.Contains(lines, "") || lines[0] == lines[1] {
			t.Errorf("key lines %q, want two different ones", lines)
		}
	})
	withKey := map[string]func(context.Context, string) *http.Request{
		"the key of the context": func(ctx context.Context, url string) *http.Request {
			return newRequest(idempotency.WithOutgoingKey(ctx, "k"), http.MethodPost, url, "10 EUR")
		},
		"a fresh key of the context": func(ctx context.Context, url string) *http.Request {
			return newRequest(idempotency.WithFreshOutgoingKey(ctx), http.MethodPost, url, "10 EUR")
		},
		"the key of the header": func(ctx context.Context, url string) *http.Request {
			r := newRequest(ctx, http.MethodPost, url, "10 EUR")
			r.Header.Set(idempotency.HeaderKey, "k")
			return r
		},
	}
	for name, request := range withKey {
		t.Run(name+" meets the stored redirect", func(t *testing.T) {
			t.Parallel()
			s := newPayments(t)
			a := do(t, client(t, &idempotency.Transport{}), request(t.Context(), s.URL+"/moved"))
			if a.status != http.StatusUnprocessableEntity || !strings.Contains(a.body, `"key_reused"`) || s.runs.Load() != 0 {
				t.Errorf("got %d %s, %d runs; want 422 and none", a.status, a.body, s.runs.Load())
			}
		})
		t.Run(name+" passes an excluded redirect", func(t *testing.T) {
			t.Parallel()
			s := newPayments(t, idempotency.WithExclude("/moved"))
			do(t, client(t, &idempotency.Transport{}), request(t.Context(), s.URL+"/moved")).want(t, http.StatusCreated, "payment 1 of 10 EUR", false)
			s.wantOperation(t, 2)
		})
	}
}

// net/http repeats a request with a key over a new connection when a kept-alive one
// breaks, and has the key from the copy that Transport made.
func TestTransportLetsNetHTTPRepeatAfterABrokenConnection(t *testing.T) {
	t.Parallel()
	s := newPayments(t)
	c := client(t, &idempotency.Transport{})
	do(t, c, newRequest(t.Context(), http.MethodGet, s.URL, "")) // leaves a connection behind
	s.breaks.Store(1)
	do(t, c, newRequest(t.Context(), http.MethodPost, s.URL, "10 EUR")).want(t, http.StatusCreated, "payment 2 of 10 EUR", true)
	if lines, _ := s.keys(); len(lines) != 3 || lines[0] != "" || lines[1] == "" || lines[1] != lines[2] || s.runs.Load() != 2 {
		t.Errorf("key lines %q, %d runs; want none and twice the same, 2 runs", lines, s.runs.Load())
	}
}

func TestTransportReturnsTheErrorOfItsBase(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	tr := &idempotency.Transport{Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		r.Body.Close()
		return nil, broken
	})}
	body := &closed{Reader: bytes.NewReader(nil)}
	r := newRequest(t.Context(), http.MethodPost, "http://service.test", "")
	r.Body = body
	if _, err := tr.RoundTrip(r); !errors.Is(err, broken) || body.times != 1 {
		t.Errorf("error %v, body closed %d times", err, body.times)
	}
}

type idleCloser struct {
	http.RoundTripper
	times int
}

func (c *idleCloser) CloseIdleConnections() { c.times++ }

func TestTransportClosesTheIdleConnectionsOfItsBase(t *testing.T) {
	t.Parallel()
	base := &idleCloser{RoundTripper: roundTripper(ok)}
	(&http.Client{Transport: &idempotency.Transport{Base: base}}).CloseIdleConnections()
	if base.times != 1 {
		t.Errorf("called %d times", base.times)
	}
	(&idempotency.Transport{Base: roundTripper(ok)}).CloseIdleConnections() // which has none to close
}
