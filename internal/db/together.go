package db

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// minMany is for how many keys of a tenant there is one statement for all of them. It has
// its place in the statement cache of each connection, so it is to be worth that.
const minMany = 4

// Together returns the statements that do all of ops in one transaction: all claims, all
// completions, and then all looks, which so see what the others have done. None of them
// may take longer than bound, but for the commit.
//
// Claims and completions go by the order of their keys. A claim waits for a transaction
// that is about to insert or to complete the same key; a completion waits for no claim.
// So no two of these transactions wait for each other.
//
// What the looks at one key find may be shared among them, and must not be changed.
func Together(ops []KeyOp, bound time.Duration) ([]Statement, error) {
	ops = slices.Clone(ops)
	slices.SortStableFunc(ops, func(a, b KeyOp) int { return a.base().compare(b.base()) })
	var t together
	for i, op := range ops {
		switch op := op.(type) {
		case *Claim:
			t.claims = append(t.claims, op)
			if op.Looks {
				t.looks = append(t.looks, &op.Look)
			}
		case *Completion:
			t.completions = append(t.completions, op)
		case *Look:
			t.looks = append(t.looks, op)
		default:
			t.claims, t.apart = append(t.claims, op), true
		}
		if i == len(ops)-1 || !ops[i+1].base().sameTenant(op.base()) {
			t.endTenant()
		}
	}
	if t.err != nil {
		return nil, t.err
	}
	var begin []Statement
	if len(ops) > 1 {
		begin = append(begin, Statement{sql: beginTogether, args: []any{strconv.FormatInt(max(1, bound.Milliseconds()), 10)}})
	}
	return slices.Concat(begin, t.claiming, t.completing, t.looking), nil
}

// together gathers the operations of a tenant, and the statements of all of them.
type together struct {
	claims      []KeyOp
	apart       bool // there are claims that have no statement in common
	completions []*Completion
	looks       []*Look

	claiming, completing, looking []Statement
	err                           error
}

// endTenant makes statements of what has been gathered of a tenant.
func (t *together) endTenant() {
	claims, completions, looks := t.claims, t.completions, t.looks
	if len(claims) < minMany || t.apart || differ(claims) {
		for _, c := range claims {
			if plain, ok := c.(*Claim); ok {
				t.add(&t.claiming, plain.insertion) // its look is among the others
			} else {
				statements, err := c.Statements()
				t.claiming, t.err = append(t.claiming, statements...), errors.Join(t.err, err)
			}
		}
	} else {
		t.add(&t.claiming, func() (Statement, error) { return claimMany(claims) })
	}
	if len(completions) < minMany || slices.ContainsFunc(completions, func(c *Completion) bool { return c.recoverable }) {
		for _, c := range completions {
			t.add(&t.completing, c.completion)
		}
	} else {
		t.add(&t.completing, func() (Statement, error) { return completionsOf(completions) })
	}
	if len(looks) < minMany {
		for _, l := range looks {
			t.add(&t.looking, l.look)
		}
	} else {
		t.add(&t.looking, func() (Statement, error) { return lookMany(looks) })
	}
	t.claims, t.apart, t.completions, t.looks = nil, false, nil, nil
}

func (t *together) add(to *[]Statement, statement func() (Statement, error)) {
	s, err := statement()
	*to, t.err = append(*to, s), errors.Join(t.err, err)
}

// Arrays that pgx encodes without a look at their types for each.
type (
	uuids = pgtype.FlatArray[pgtype.UUID]
	texts = pgtype.FlatArray[string]
	bytes = pgtype.FlatArray[[]byte]
	ints  = pgtype.FlatArray[int32]
	bools = pgtype.FlatArray[bool]
)

// differ reports whether the terms of claims do: then they have no statement in common.
func differ(claims []KeyOp) bool {
	first := claims[0].(*Claim).insert
	return slices.ContainsFunc(claims, func(c KeyOp) bool {
		insert := c.(*Claim).insert
		return insert.Ttl != first.Ttl || insert.Lease != first.Lease
	})
}

// claimMany is [Queries.ClaimInsertMany] for claims on the same terms.
func claimMany(ops []KeyOp) (Statement, error) {
	claims := make([]*Claim, len(ops))
	tokens, keys, hashes := make(uuids, len(ops)), make(texts, len(ops)), make(bytes, len(ops))
	for i, op := range ops {
		c := op.(*Claim)
		c.Claimed = false
		claims[i], tokens[i], keys[i], hashes[i] = c, c.insert.Token, c.key, c.insert.RequestHash
	}
	var key string
	var token pgtype.UUID
	first, next := claims[0], 0
	return first.tenant.statement(claimInsertMany, Statement{
		args: []any{first.insert.Ttl, first.insert.Lease, tokens, first.orgID, keys, hashes},
		dest: []any{&key, &token},
		onRow: func() { // in the order of the claims, so that there is next to no looking for it
			for range claims {
				c := claims[next%len(claims)]
				if next++; c.key == key && c.insert.Token == token {
					c.Claimed = true
					return
				}
			}
		},
	})
}

// completionsOf is [Queries.CompleteMany]. Those of which it returns nothing are not settled.
func completionsOf(completions []*Completion) (Statement, error) {
	n := len(completions)
	tokens, keys, headers, bodies := make(uuids, n), make(texts, n), make(bytes, n), make(bytes, n)
	statuses, kept := make(ints, n), make(bools, n)
	for i, c := range completions {
		c.Held, c.unsettled = false, true
		a := &c.complete
		tokens[i], keys[i], headers[i], bodies[i] = a.Token, a.Key, a.ResponseHeaders, a.ResponseBody
		statuses[i], kept[i] = a.ResponseStatus, a.ResponseKept
	}
	var key string
	var token pgtype.UUID
	var awaited bool
	first, next := completions[0], 0
	return first.tenant.statement(completeMany, Statement{
		args: []any{first.orgID, tokens, keys, statuses, kept, headers, bodies},
		dest: []any{&key, &token, &awaited},
		onRow: func() { // in the order of the completions, as for claims
			for range completions {
				c := completions[next%n]
				if next++; c.unsettled && c.key == key && c.complete.Token == token {
					c.Held, c.Awaited, c.unsettled = true, awaited, false
					return
				}
			}
		},
	})
}

// lookMany is [Queries.ClaimSelectMany]. The looks are in the order of their keys; those
// at one key share what is found.
func lookMany(looks []*Look) (Statement, error) {
	keys := make(texts, 0, len(looks))
	for i, l := range looks {
		l.Found = false
		if i == 0 || l.key != looks[i-1].key {
			keys = append(keys, l.key)
		}
	}
	var key string
	row := new(ClaimSelectRow)
	return looks[0].tenant.statement(claimSelectMany, Statement{
		args: []any{keys, looks[0].orgID},
		dest: append([]any{&key}, row.dest()...),
		onRow: func() {
			i, _ := slices.BinarySearchFunc(looks, key, func(l *Look, key string) int { return strings.Compare(l.key, key) })
			for ; i < len(looks) && looks[i].key == key; i++ {
				looks[i].Row, looks[i].Found = *row, true
			}
			*row = ClaimSelectRow{} // its bytes are theirs now
		},
	})
}
