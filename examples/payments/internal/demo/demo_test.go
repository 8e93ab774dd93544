package demo_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/examples/payments/internal/demo"
	"github.com/pgidem/pgidem/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }

// play runs the script and returns its transcript.
func play(ctx context.Context, t *testing.T, transport http.RoundTripper) (transcript string, err error) {
	t.Helper()
	var out strings.Builder
	err = demo.Run(ctx, pgtest.NewDatabase(t), demo.NewTranscript(&out, false), demo.Options{Transport: transport})
	return out.String(), err
}

// Not in parallel with others: goleak sees the goroutines of all.
func TestScript(t *testing.T) {
	before := goleak.IgnoreCurrent()
	transcript, err := play(t.Context(), t, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, transcript)
	}
	goleak.VerifyNone(t, before)

	const payment = `payment ([0-9a-f-]{36})\n`
	for _, fact := range []string{
		`A payments service at http://127\.0\.0\.1:\d+`,
		`(?s)\n1\. .*→  201 Created\n +` + payment,
		`(?s)\n2\. .*→  201 Created\n +Idempotency-Replayed: true\n +` + payment,
		`(?s)\n3\. .*south .*order-1\n.*→  201 Created\n +` + payment,
		`(?s)\n4\. .*order-2 is in progress, leased for \d+s\n.*→  409 Conflict\n +Retry-After: 1\n +in_flight: .*→  201 Created\n +` + payment,
		`(?s)\n5\. .*→  422 Unprocessable Entity\n +key_reused: `,
		`(?s)\n6\. .*→    1 × 201 Created\n`,
		`(?s)\n7\. .*in schema tenant_[0-9a-f]{32}\n.*order-3 +completed +201 +in 23h59m`,
		`(?s)\n8\. .*order-1 +completed +201 +1h0m\d+s ago\n.*deleted 3 records.*→  200 OK\n`,
		`\nAll 8 steps showed what they should: \d+ checks in \d+\.\d s\.\n$`,
	} {
		if !regexp.MustCompile(fact).MatchString(transcript) {
			t.Errorf("the transcript does not match %s", fact)
		}
	}
	ids := regexp.MustCompile(payment).FindAllStringSubmatch(transcript, -1)
	if len(ids) < 3 || ids[0][1] != ids[1][1] || ids[0][1] == ids[2][1] {
		t.Errorf("payments %v: want the second to be the first, and south's another", ids)
	}
	if strings.Contains(transcript, "✗") || strings.Contains(transcript, "\x1b") {
		t.Error("the transcript has a cross or a control sequence in it")
	}
	for line := range strings.Lines(transcript) {
		if utf8.RuneCountInString(line) > 81 {
			t.Errorf("a line of more than 80 characters: %s", line)
		}
	}
	if t.Failed() {
		t.Log(transcript)
	}
}

// fault changes requests or responses on their way.
type fault struct {
	http.RoundTripper
	request  func(*http.Request)
	response func(*http.Response)
}

func (f fault) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if f.request != nil {
		f.request(r)
	}
	resp, err := f.RoundTripper.RoundTrip(r)
	if err == nil && f.response != nil {
		f.response(resp)
	}
	return resp, err
}

func (f fault) CloseIdleConnections() { f.RoundTripper.(*http.Transport).CloseIdleConnections() }

// A script that says that all is well proves nothing unless it also says when
// something is not.
func TestScriptNoticesWhatIsWrong(t *testing.T) {
	t.Parallel()
	freshKey := func(r *http.Request) { r.Header.Set("Idempotency-Key", uuid.NewString()) }
	var token sync.Map
	var crowd atomic.Int64
	for name, tc := range map[string]struct {
		fault fault
		step  string
	}{
		"retries with a key of their own": {fault{request: func(r *http.Request) {
			if r.Header.Get("Idempotency-Key") != "" {
				freshKey(r)
			}
		}}, "step 2"},
		"replays that are not marked": {fault{response: func(r *http.Response) { r.Header.Del("Idempotency-Replayed") }}, "step 2"},
		"replays with another body": {fault{response: func(r *http.Response) {
			if r.Header.Get("Idempotency-Replayed") != "" {
				r.Body = io.NopCloser(strings.NewReader("{}"))
			}
		}}, "step 2"},
		"tenants that are taken for one": {fault{request: func(r *http.Request) {
			if is := r.Header.Get("Authorization"); is != "" {
				first, _ := token.LoadOrStore("first", is)
				r.Header.Set("Authorization", first.(string))
			}
		}}, "step 3"},
		"no word when to retry": {fault{response: func(r *http.Response) { r.Header.Del("Retry-After") }}, "step 4"},
		"a reused key that is accepted": {fault{request: func(r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			if strings.Contains(string(body), "inv-9") {
				freshKey(r)
			}
		}}, "step 5"},
		"a duplicate that is not known as one": {fault{request: func(r *http.Request) {
			if r.Header.Get("Idempotency-Key") == "order-3" && crowd.Add(1) == 7 {
				freshKey(r)
			}
		}}, "step 6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.fault.RoundTripper = http.DefaultTransport.(*http.Transport).Clone()
			transcript, err := play(t.Context(), t, tc.fault)
			if err == nil || !strings.HasPrefix(err.Error(), tc.step+" did not show what it should: ") {
				t.Fatalf("got error %v, want one of %s\n%s", err, tc.step, transcript)
			}
			if !strings.Contains(transcript, "✗") || strings.Contains(transcript, "All 8 steps") {
				t.Errorf("the transcript does not tell:\n%s", transcript)
			}
		})
	}
}

func TestScriptIsInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	transport := fault{
		RoundTripper: http.DefaultTransport.(*http.Transport).Clone(),
		request: func(r *http.Request) {
			if r.Header.Get("Idempotency-Key") == "order-2" {
				cancel(stop)
			}
		},
	}
	if transcript, err := play(ctx, t, transport); !errors.Is(err, stop) {
		t.Errorf("got error %v, want the cause of the end\n%s", err, transcript)
	}
}

func TestScriptWithoutDatabase(t *testing.T) {
	t.Parallel()
	out := demo.NewTranscript(io.Discard, false)
	if err := demo.Run(t.Context(), "postgres://127.0.0.1:1/none?connect_timeout=1", out, demo.Options{}); err == nil {
		t.Error("no error from Run")
	}
	if err := demo.Serve(t.Context(), "postgres://127.0.0.1:1/none?connect_timeout=1", out, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error from Serve")
	}
}

func TestColours(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := demo.Run(t.Context(), pgtest.NewDatabase(t), demo.NewTranscript(&out, true), demo.Options{}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\x1b["); n < 50 || n%2 != 0 {
		t.Errorf("%d control sequences: want many, and each one ended", n)
	}
	if strings.Count(out.String(), "\x1b[0m") != strings.Count(out.String(), "\x1b[")/2 {
		t.Error("a colour that does not end")
	}
}
