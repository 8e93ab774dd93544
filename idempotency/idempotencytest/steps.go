package idempotencytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/idempotency"
)

// stepFixture is a fixture whose store keeps steps.
type stepFixture struct {
	*leaseFixture
	steps idempotency.StepStore
}

// begin claims the key for an attempt, which must be the one of that number.
func (f *stepFixture) begin(t *testing.T, req idempotency.ClaimRequest, attempt int) idempotency.Claim {
	t.Helper()
	if got := f.claim(t, req, idempotency.OutcomeClaimed).Attempt; got != attempt {
		t.Fatalf("Claim: attempt %d, want %d", got, attempt)
	}
	return req.Claim
}

// save saves a step, and checks which result is stored then.
func (f *stepFixture) save(t *testing.T, c idempotency.Claim, name, result, want string) {
	t.Helper()
	stored, err := f.steps.SaveStep(f.ctx, c, name, []byte(result))
	if err != nil || string(stored) != want {
		t.Fatalf("SaveStep(%q) = %q, %v; want %q", name, stored, err, want)
	}
}

// load checks the result that is stored for a name; "" stands for none.
func (f *stepFixture) load(t *testing.T, c idempotency.Claim, name, want string) {
	t.Helper()
	result, found, err := f.steps.LoadStep(f.ctx, c, name)
	if err != nil || found != (want != "") || string(result) != want {
		t.Fatalf("LoadStep(%q) = %q, %t, %v; want %q", name, result, found, err, want)
	}
}

// wantNoSteps checks that the claim may neither load nor save.
func (f *stepFixture) wantNoSteps(t *testing.T, c idempotency.Claim) {
	t.Helper()
	_, _, err := f.steps.LoadStep(f.ctx, c, "charge")
	wantLost(t, "LoadStep", err)
	_, err = f.steps.SaveStep(f.ctx, c, "charge", []byte(`"stale"`))
	wantLost(t, "SaveStep", err)
	_, err = f.steps.SaveStep(f.ctx, c, "another", []byte(`"stale"`))
	wantLost(t, "SaveStep", err)
}

func testStepSavedIsLoaded(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	f.load(t, c, "charge", "")
	f.save(t, c, "charge", `{"id":1}`, `{"id":1}`)
	f.load(t, c, "charge", `{"id":1}`)
	f.load(t, c, "Charge", "")
	f.load(t, c, "charge ", "")
	long := strings.Repeat("é", idempotency.MaxStepName/2)
	for _, name := range []string{long, "\x1freserved", "a'b\"c\\d%s", "日本"} {
		f.save(t, c, name, `"of `+name+`"`, `"of `+name+`"`)
		f.load(t, c, name, `"of `+name+`"`)
	}
	large := `"` + strings.Repeat("x", 1<<20) + `"`
	f.save(t, c, "large", large, large)
	f.load(t, c, "large", large)
}

func testStepTakesACopy(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	result := []byte(`"mine"`)
	if _, err := f.steps.SaveStep(f.ctx, c, "charge", result); err != nil {
		t.Fatal(err)
	}
	copy(result, bytes.Repeat([]byte("x"), len(result)))
	f.load(t, c, "charge", `"mine"`)
}

func testStepOfTheFirstStays(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	f.save(t, c, "charge", `1`, `1`)
	f.save(t, c, "charge", `2`, `1`)
	f.load(t, c, "charge", `1`)
}

func testStepsSeeCancelledContext(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	ctx, cancel := context.WithCancel(f.ctx)
	cancel()
	if _, _, err := f.steps.LoadStep(ctx, c, "charge"); !errors.Is(err, context.Canceled) {
		t.Errorf("LoadStep: %v; want the context's error", err)
	}
	if _, err := f.steps.SaveStep(ctx, c, "charge", []byte(`1`)); !errors.Is(err, context.Canceled) {
		t.Errorf("SaveStep: %v; want the context's error", err)
	}
	f.load(t, c, "charge", "")
}

func testStepIsSeenAfterTakeOver(t *testing.T, f *stepFixture) {
	first := f.begin(t, f.request("k"), 1)
	f.save(t, first, "charge", `1`, `1`)
	f.pass(t)
	second := f.begin(t, f.request("k"), 2)
	f.load(t, second, "charge", `1`)
	f.save(t, second, "charge", `2`, `1`)
	f.save(t, second, "mail", `"sent"`, `"sent"`)
	f.complete(t, second, 201)
}

// testStepsMoveOnWithTheRecord: a take-over gives the record a new expiry, and its steps
// with it.
func testStepsMoveOnWithTheRecord(t *testing.T, f *stepFixture) {
	req := f.request("k")
	req.TTL = 3 * f.span() / 2
	f.save(t, f.begin(t, req, 1), "charge", `1`, `1`)
	for attempt := 2; attempt <= 4; attempt++ {
		f.pass(t)
		req.Token = idempotency.NewToken()
		f.load(t, f.begin(t, req, attempt), "charge", `1`)
	}
}

// testStepsEndWithTheRecord: a new life of the key knows nothing of the steps before it,
// whether the one before was completed, left behind or released.
func testStepsEndWithTheRecord(t *testing.T, f *stepFixture) {
	ends := map[string]func(idempotency.Claim){
		"completed": func(c idempotency.Claim) { f.complete(t, c, 201) },
		"left":      func(idempotency.Claim) {},
		"released": func(c idempotency.Claim) {
			if err := f.leases.Release(f.ctx, c); err != nil {
				t.Fatal(err)
			}
		},
	}
	for key, end := range ends {
		req := f.request(key)
		req.TTL = f.span()
		c := f.begin(t, req, 1)
		f.save(t, c, "charge", `1`, `1`)
		end(c)
	}
	f.pass(t)
	for key := range ends {
		c := f.begin(t, f.request(key), 1)
		f.load(t, c, "charge", "")
		f.save(t, c, "charge", `2`, `2`)
		f.load(t, c, "charge", `2`)
	}
}

func testStepsEndWithAPut(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	f.save(t, c, "charge", `1`, `1`)
	rec := f.record("k")
	rec.CreatedAt, rec.ExpiresAt = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	f.put(t, rec)
	f.wantNoSteps(t, c)
	f.load(t, f.begin(t, f.request("k"), 1), "charge", "")
}

// testStepsOfAnotherFingerprint: a key that is used anew for another request does not
// show it what the one before did.
func testStepsOfAnotherFingerprint(t *testing.T, f *stepFixture) {
	req := f.request("k")
	req.TTL = f.span()
	f.save(t, f.begin(t, req, 1), "charge", `1`, `1`)
	other := f.request("k")
	other.RequestHash = otherHash
	f.pass(t)
	c := f.begin(t, other, 1)
	f.load(t, c, "charge", "")
	f.save(t, c, "charge", `2`, `2`)
	f.load(t, c, "charge", `2`)
}

func testStepsOfTenantsAndKeysNeverMeet(t *testing.T, f *stepFixture) {
	mine := f.begin(t, f.request("k"), 1)
	f.save(t, mine, "charge", `"mine"`, `"mine"`)
	foreign := f.request("k")
	foreign.OrgID = f.newTenant(t, f.store)
	theirs := f.begin(t, foreign, 1)
	f.load(t, theirs, "charge", "")
	another := f.begin(t, f.request("K"), 1)
	f.load(t, another, "charge", "")
	f.save(t, theirs, "charge", `"theirs"`, `"theirs"`)
	f.save(t, another, "charge", `"another"`, `"another"`)
	f.load(t, mine, "charge", `"mine"`)

	f.wantNoSteps(t, idempotency.Claim{OrgID: foreign.OrgID, Key: "k", Token: mine.Token})
	f.wantNoSteps(t, idempotency.Claim{OrgID: f.org, Key: "K", Token: mine.Token})
	f.wantNoSteps(t, idempotency.Claim{OrgID: f.org, Key: "none", Token: mine.Token})
	f.wantNoSteps(t, idempotency.Claim{OrgID: f.org, Key: "k", Token: idempotency.Token(uuid.Nil)})
}

// testStaleTokenHasNoSteps: a process that was paused past its lease stores nothing when
// it goes on.
func testStaleTokenHasNoSteps(t *testing.T, f *stepFixture) {
	stale := f.begin(t, f.request("k"), 1)
	f.pass(t)
	f.save(t, stale, "before", `1`, `1`) // nobody has taken over yet
	second := f.begin(t, f.request("k"), 2)
	f.wantNoSteps(t, stale)
	f.load(t, second, "before", `1`)
	f.load(t, second, "charge", "")
	f.load(t, second, "another", "")
	f.save(t, second, "charge", `2`, `2`)
	f.wantNoSteps(t, stale)
	f.load(t, second, "charge", `2`)
}

func testCompletedRecordTakesNoSteps(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	f.complete(t, c, 201)
	f.wantNoSteps(t, c)
}

// testReleaseKeepsSteps: what an attempt has done is not forgotten because it came to
// nothing in the end.
func testReleaseKeepsSteps(t *testing.T, f *stepFixture) {
	first := f.begin(t, f.request("k"), 1)
	f.save(t, first, "charge", `1`, `1`)
	if err := f.leases.Release(f.ctx, first); err != nil {
		t.Fatal(err)
	}
	f.wantNoSteps(t, first)
	wantLost(t, "Release again", f.leases.Release(f.ctx, first))
	other := f.request("k")
	other.RequestHash = otherHash
	f.claim(t, other, idempotency.OutcomeMismatch)
	for attempt := 2; attempt <= 3; attempt++ {
		c := f.begin(t, f.request("k"), attempt) // at once
		f.load(t, c, "charge", `1`)
		if err := f.leases.Release(f.ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	without := f.begin(t, f.request("another"), 1)
	f.load(t, without, "charge", "")
	if err := f.leases.Release(f.ctx, without); err != nil {
		t.Fatal(err)
	}
	f.begin(t, f.request("another"), 1)
}

func testConcurrentSavesHaveOneWinner(t *testing.T, f *stepFixture) {
	c := f.begin(t, f.request("k"), 1)
	for round := range 20 {
		name := fmt.Sprint("step ", round)
		var wg sync.WaitGroup
		stored := make([]string, 8)
		for i := range stored {
			wg.Go(func() {
				result, err := f.steps.SaveStep(f.ctx, c, name, fmt.Append(nil, i))
				if err != nil {
					t.Errorf("SaveStep: %v", err)
				}
				stored[i] = string(result)
			})
		}
		wg.Wait()
		for _, result := range stored {
			f.load(t, c, name, result)
		}
	}
}

// testConcurrentSaveAndTakeOver: a step is stored before another attempt takes over, and
// then seen by it, or not at all.
func testConcurrentSaveAndTakeOver(t *testing.T, f *stepFixture) {
	const rounds = 40
	var late [rounds]idempotency.Claim
	for i := range late {
		late[i] = f.begin(t, f.request(fmt.Sprint("k", i)), 1)
	}
	f.pass(t)
	for i, c := range late {
		var wg sync.WaitGroup
		var saved error
		begun := make(chan struct{})
		wg.Go(func() {
			close(begun)
			_, saved = f.steps.SaveStep(f.ctx, c, "charge", []byte(`"late"`))
		})
		<-begun
		next := f.request(c.Key)
		result, err := f.leases.Claim(f.ctx, next)
		if err != nil || result.Outcome != idempotency.OutcomeClaimed {
			t.Fatalf("Claim: outcome %d, %v", result.Outcome, err)
		}
		seen, found, err := f.steps.LoadStep(f.ctx, next.Claim, "charge")
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if saved != nil {
			wantLost(t, "SaveStep", saved)
		}
		if found != (saved == nil) {
			t.Fatalf("round %d: the late attempt got %v, and the next one sees %q, %t", i, saved, seen, found)
		}
	}
}

// testConcurrentSaveAndRelease: a step that is stored while its attempt is released is
// not lost either.
func testConcurrentSaveAndRelease(t *testing.T, f *stepFixture) {
	for i := range 40 {
		c := f.begin(t, f.request(fmt.Sprint("k", i)), 1)
		var wg sync.WaitGroup
		var saved error
		begun := make(chan struct{})
		wg.Go(func() {
			close(begun)
			_, saved = f.steps.SaveStep(f.ctx, c, "charge", []byte(`1`))
		})
		<-begun
		if err := f.leases.Release(f.ctx, c); err != nil {
			t.Fatalf("Release: %v", err)
		}
		wg.Wait()
		want := `1`
		if saved != nil {
			wantLost(t, "SaveStep", saved)
			want = ""
		}
		next := f.request(c.Key)
		f.claim(t, next, idempotency.OutcomeClaimed)
		f.load(t, next.Claim, "charge", want)
	}
}
