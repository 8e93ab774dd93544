package history

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Summary counts what a history is made of.
type Summary struct {
	Kills     map[string]int // by point; those at random moments by [KilledAtRandom]
	Stops     map[string]int // by point; those at random moments by [StoppedAtRandom]
	Deaths    int
	Requests  int
	Retries   int // requests beyond the first of each client for a key
	Keys      int
	Answers   map[string]int // by status and code
	Decisions map[string]int // of the middleware
	Takeovers int            // claims granted to a second attempt or a later one
	Extended  int            // leases
	BankCalls map[string]int // by step
	Repeated  map[string]int // bank calls beyond the first for a key, by step
	Postgres  int            // kills of the server
	Strikes   map[Strike]int // of the network
	Recovered int            // attempts of completers that completed
	Left      int            // clients that went away after one try without an answer
	Begun     int            // keys of theirs whose request was begun
}

// Summarise returns the summary of a history.
func (h *History) Summarise() Summary {
	s := Summary{
		Kills: make(map[string]int), Stops: make(map[string]int), Answers: make(map[string]int), Decisions: make(map[string]int),
		BankCalls: make(map[string]int), Repeated: make(map[string]int), Requests: len(h.Requests),
		Strikes: make(map[Strike]int),
	}
	type try struct {
		client   int
		org, key string
	}
	tries, keys := make(map[try]bool), make(map[try]bool)
	for _, r := range h.Requests {
		this := try{r.Client, r.Org, r.Key}
		if tries[this] {
			s.Retries++
		}
		if r.Left {
			s.Left++
		}
		tries[this], keys[try{0, r.Org, r.Key}] = true, true
		s.Answers[r.kind()]++
	}
	s.Keys, s.Begun = len(keys), len(h.Begun())
	for _, e := range h.Events {
		switch {
		case e.Kind == Killed:
			s.Kills[e.Point]++
		case e.Kind == Stopped:
			s.Stops[e.Point]++
		case e.Kind == Decided:
			s.Decisions[e.Outcome]++
		case e.Kind == ExtendCall && e.Done && e.Err == "":
			s.Extended++
		case e.Kind == ClaimCall && e.Done && e.Attempt > 1:
			s.Takeovers++
		case e.Kind == CompleteCall && e.Done && e.Err == "" && strings.HasPrefix(e.Request, RecoveredRequest):
			s.Recovered++
		}
	}
	for _, f := range h.Faults {
		switch f.Kind {
		case KilledAtRandom:
			s.Kills[KilledAtRandom]++
		case StoppedAtRandom:
			s.Stops[StoppedAtRandom]++
		case Died:
			s.Deaths++
		case PostgresKilled:
			s.Postgres++
		case Struck:
			s.Strikes[f.Strike]++
		}
	}
	called := make(map[BankCall]bool)
	for _, c := range h.Bank {
		s.BankCalls[c.Step]++
		this := BankCall{Org: c.Org, Key: c.Key, Step: c.Step}
		if called[this] {
			s.Repeated[c.Step]++
		}
		called[this] = true
	}
	return s
}

// kind names what a request got.
func (r Request) kind() string {
	switch {
	case r.Status == 0:
		return "none"
	case r.Status == http.StatusCreated && r.Replayed:
		return "201 replayed"
	}
	return strings.TrimSpace(fmt.Sprint(r.Status, " ", r.Code))
}

// String returns the summary as lines for people.
func (s Summary) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "processes killed: %d", s.Deaths)
	list(&b, "kills", s.Kills)
	list(&b, "stops", s.Stops)
	if s.Postgres > 0 {
		fmt.Fprintf(&b, "\npostgres killed: %d", s.Postgres)
	}
	strikes(&b, s.Strikes)
	if s.Recovered+s.Left > 0 {
		fmt.Fprintf(&b, "\nclients that left: %d, with begun requests: %d; completed by completers: %d", s.Left, s.Begun, s.Recovered)
	}
	fmt.Fprintf(&b, "\nkeys: %d, requests: %d, retries among them: %d, take-overs: %d, leases extended: %d",
		s.Keys, s.Requests, s.Retries, s.Takeovers, s.Extended)
	list(&b, "answers", s.Answers)
	list(&b, "decisions", s.Decisions)
	list(&b, "calls of the bank", s.BankCalls)
	list(&b, "calls of the bank beyond a key's first", s.Repeated)
	return b.String()
}

// strikes writes a line for each kind of strike.
func strikes(b *strings.Builder, counts map[Strike]int) {
	byKind := make(map[string]map[string]int)
	for strike, n := range counts {
		if byKind[strike.Kind] == nil {
			byKind[strike.Kind] = make(map[string]int)
		}
		byKind[strike.Kind][strings.TrimSpace(strike.Statement+" "+strike.Moment)] += n
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		list(b, "network: "+kind, byKind[kind])
	}
}

func list(b *strings.Builder, title string, counts map[string]int) {
	if len(counts) == 0 {
		return
	}
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	fmt.Fprintf(b, "\n%s:", title)
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, " %s %d", name, counts[name])
	}
}
