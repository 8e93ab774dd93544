package harness

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pgidem/pgidem/chaos/history"
	"github.com/pgidem/pgidem/chaos/service"
)

// bank has the effects of payments outside the database. It lives in the harness, so that
// it remembers what processes that were killed have asked of it. A charge with a child key
// it makes once, and answers with the same again.
type bank struct {
	log  *history.Log
	slow time.Duration // of one call in slowEvery

	mu      sync.Mutex
	charges map[string]string // by child key
}

const slowEvery = 60

// ServeHTTP implements [http.Handler].
func (b *bank) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := history.BankCall{
		Begin: history.Now(), Request: r.Header.Get(service.RequestHeader),
		Org: r.Header.Get(service.OrgHeader), Key: r.Header.Get(service.PaymentHeader),
		Step: strings.TrimPrefix(r.URL.Path, "/"), ChildKey: r.Header.Get(service.ChildKeyHeader),
	}
	call.Result = b.do(call)
	if rand.IntN(slowEvery) == 0 {
		wait(r.Context().Done(), b.slow)
	} else {
		wait(r.Context().Done(), rand.N(3*time.Millisecond))
	}
	call.End = history.Now()
	b.log.Write(call) // before the answer: a call that is answered is known
	_, _ = io.WriteString(w, call.Result)
}

func (b *bank) do(call history.BankCall) (id string) {
	id = fmt.Sprintf("%s-%s", call.Step, uuid.NewString())
	if call.ChildKey == "" {
		return id
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if known, ok := b.charges[call.ChildKey]; ok {
		return known
	}
	b.charges[call.ChildKey] = id
	return id
}
