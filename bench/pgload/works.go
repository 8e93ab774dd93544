package main

import "slices"

// work is one thing that is measured.
type work struct {
	name string
	what string // for people
	base string // name of the work that it is compared with, or empty

	script string // of pgbench, or empty

	mode    string // of the service: bare, lease, few, apart, relaxed or tx
	keys    keys
	large   bool // responses of 64 KiB
	tenants int
	clients int // if not as many as of the other works
}

// keys says how the requests of a work choose theirs.
type keys int

const (
	noKey    keys = iota
	newKey        // each request has its own
	manyKeys      // one of the prefilled, at random
	oneKey        // one prefilled key for all
	threeOf       // each is sent three times, out of order, by any of the clients
)

// works are all that is measured, in the order of the report.
var works = []work{
	{name: "bare", what: "service without middleware", mode: "bare", tenants: 1},
	{name: "no-key", what: "no key: passes through", base: "bare", mode: "lease", tenants: 1},

	{name: "pgbench-pair", what: "pgbench: insert + update, two transactions", script: pairScript},
	{name: "first", what: "first request, leases", base: "pgbench-pair", mode: "lease", keys: newKey, tenants: 1},
	{name: "first-few", what: "the same, few transactions at once", base: "pgbench-pair", mode: "few", keys: newKey, tenants: 1},
	{name: "first-100", what: "the same, of 100 tenants", base: "pgbench-pair", mode: "lease", keys: newKey, tenants: 100},
	{name: "first-1000", what: "the same, of 1,000 tenants", base: "pgbench-pair", mode: "lease", keys: newKey, tenants: 1000},
	{name: "first-relaxed", what: "the same, of one, with relaxed claims", base: "pgbench-pair", mode: "relaxed", keys: newKey, tenants: 1},
	{name: "storm", what: "retry storm: each request three times, out of order, two at once as well", base: "pgbench-pair", mode: "lease", keys: threeOf, tenants: 1},

	{name: "first-apart", what: "first request, each by itself", base: "pgbench-pair", mode: "apart", keys: newKey, tenants: 1},
	{name: "first-256-apart", what: "first request, 256 clients, each by itself", base: "pgbench-pair", mode: "apart", keys: newKey, tenants: 1, clients: 256},
	{name: "first-256", what: "the same, together", base: "pgbench-pair", mode: "lease", keys: newKey, tenants: 1, clients: 256},
	{name: "first-256-few", what: "the same, few transactions at once", base: "pgbench-pair", mode: "few", keys: newKey, tenants: 1, clients: 256},
	{name: "first-256-1000", what: "the same, of 1,000 tenants", base: "pgbench-pair", mode: "lease", keys: newKey, tenants: 1000, clients: 256},

	{name: "pgbench-tx", what: "pgbench: lock, business insert, record, one transaction", script: txScript},
	{name: "first-tx", what: "first request, in a transaction with a business insert", base: "pgbench-tx", mode: "tx", keys: newKey, tenants: 1},

	{name: "pgbench-select", what: "pgbench: one select by primary key", script: selectScript},
	{name: "replay", what: "replay, of 10,000 keys", base: "pgbench-select", mode: "lease", keys: manyKeys, tenants: 1},
	{name: "replay-few", what: "the same, few transactions at once", base: "pgbench-select", mode: "few", keys: manyKeys, tenants: 1},
	{name: "replay-hot", what: "the same, of one key", base: "pgbench-select", mode: "lease", keys: oneKey, tenants: 1},
	{name: "replay-tx", what: "the same, of 10,000 keys, in transactions", base: "pgbench-select", mode: "tx", keys: manyKeys, tenants: 1},
	{name: "replay-256", what: "the same, of 10,000 keys, 256 clients", base: "pgbench-select", mode: "lease", keys: manyKeys, tenants: 1, clients: 256},

	{name: "pgbench-pair-64k", what: "pgbench: the pair with 64 KiB", script: pairLargeScript},
	{name: "first-64k", what: "first request, response of 64 KiB", base: "pgbench-pair-64k", mode: "lease", keys: newKey, large: true, tenants: 1},
	{name: "replay-64k", what: "replay of 64 KiB", base: "pgbench-select", mode: "lease", keys: manyKeys, large: true, tenants: 1},
}

func workNames() []string {
	names := make([]string, len(works))
	for i, w := range works {
		names[i] = w.name
	}
	return names
}

func (w work) index() int {
	return slices.IndexFunc(works, func(o work) bool { return o.name == w.name })
}
