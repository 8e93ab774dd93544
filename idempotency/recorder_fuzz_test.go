package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// FuzzCaptureAndReplay: a handler that does whatever it likes with its writer is
// answered for by net/http alone, through the middleware, and in a replay, each over
// real HTTP. The three responses must be the same but for what the contract names.
func FuzzCaptureAndReplay(f *testing.F) {
	for _, script := range []string{
		"", "W<b>", "S0C4Wx", "C1", "C6Wx", "C0S1S2C4S3Wx", "S4A4A4C3", "D5WaFWb", "N5Wx", "FWx", "C5", "C7Wgone",
		"WaWbWcFWdFWe", "SaCaWx", "L9W{}", "A5A5C3Wx", "C3C6Wx", "RxWy", "S8C0C4Wx", "SbWx", "S0N0", "D5D6C4",
	} {
		f.Add(script)
	}
	var mu sync.Mutex
	script := ""
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { play(w, script) })
	outer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Outer", "outer")
			w.Header()["Vary"] = []string{"Origin"}
			next.ServeHTTP(w, r.WithContext(idempotency.WithOrgID(r.Context(), orgA)))
		})
	}
	serve := func(h http.Handler) *httptest.Server {
		server := httptest.NewUnstartedServer(outer(h))
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // superfluous WriteHeader calls
		server.Start()
		f.Cleanup(server.Close)
		return server
	}
	bare := serve(handler)
	store := idempotency.NewMemoryStore()
	kept := serve(idempotency.Require(store,
		idempotency.WithStorable(func(int) bool { return true }),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)))(handler))

	f.Fuzz(func(t *testing.T, s string) {
		mu.Lock() // one script at a time
		defer mu.Unlock()
		script = s
		key := uuid.NewString()
		want := fetch(t, bare, "")
		first := fetch(t, kept, key)
		again := fetch(t, kept, key)
		if err := store.Clear(context.Background(), orgA); err != nil {
			t.Fatal(err)
		}
		if !again.replayed || first.replayed {
			t.Fatalf("replayed is %t, then %t", first.replayed, again.replayed)
		}
		if got, want := first.text(), want.text(); got != want {
			t.Errorf("through the middleware\n%s\nwant as without it\n%s", got, want)
		}
		for _, name := range []string{"Set-Cookie", "Www-Authenticate"} {
			first.header.Del(name)
		}
		if got, want := again.text(), first.text(); got != want {
			t.Errorf("replay\n%s\nwant\n%s", got, want)
		}
	})
}

var (
	fuzzNames    = []string{"X-A", "Content-Type", "Etag", "Set-Cookie", "Vary", "X-Outer", "Www-Authenticate", "Location", "Link", "Content-Encoding", "x-lower"}
	fuzzStatuses = []int{http.StatusEarlyHints, http.StatusNoContent, http.StatusNotModified, http.StatusOK, http.StatusCreated, http.StatusNotFound, http.StatusInternalServerError, http.StatusGone}
)

// play lets a handler do what the script says: each step is a letter for what to do,
// and one for what with. Any other byte stands for one of the letters.
func play(w http.ResponseWriter, script string) {
	h := w.Header()
	n := 0
	for len(script) > 1 {
		const steps = "SADNCWRLF"
		step, with := script[0], script[1]
		if strings.IndexByte(steps, step) < 0 {
			step = steps[int(step)%len(steps)]
		}
		script = script[2:]
		name := fuzzNames[int(with)%len(fuzzNames)]
		n++
		switch step {
		case 'S':
			h.Set(name, fmt.Sprint("set-", n))
		case 'A':
			h.Add(name, fmt.Sprint("added-", n))
		case 'D':
			h.Del(name)
		case 'N':
			h[name] = nil
		case 'C':
			w.WriteHeader(fuzzStatuses[int(with)%len(fuzzStatuses)])
		case 'W':
			w.Write([]byte{with})
		case 'R':
			io.Copy(w, strings.NewReader(strings.Repeat(string(rune(with)), 100)))
		case 'L':
			io.WriteString(w, string(rune(with)))
		case 'F':
			w.(http.Flusher).Flush()
		}
	}
}

type fetched struct {
	status   int
	header   http.Header
	body     string
	replayed bool
}

// text is all of the response that must not differ. How the body is framed may:
// what is known in full has a length.
func (f fetched) text() string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(f.header)) {
		switch name {
		case "Date", "Content-Length", "Idempotency-Replayed":
		default:
			lines = append(lines, fmt.Sprintf("%s: %q", name, f.header[name]))
		}
	}
	return fmt.Sprintf("%d\n%s\n%q", f.status, strings.Join(lines, "\n"), f.body)
}

func fetch(t *testing.T, server *httptest.Server, key string) fetched {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set(idempotency.HeaderKey, key)
	}
	resp, err := server.Client().Transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fetched{resp.StatusCode, resp.Header, string(body), resp.Header.Get("Idempotency-Replayed") == "true"}
}
