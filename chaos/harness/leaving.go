package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// recoveryLimit bounds how long completers may take after the faults are over.
const recoveryLimit = 90 * time.Second

// leave makes one try. A client that has no answer then goes away, until all others have
// theirs.
func (c *clients) leave(ctx context.Context, client int, random *rand.Rand, p payment) {
	p.leaves = true
	if c.try(ctx, p.key+"/only", client, random, p) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.leaves, p.returned = false, true
	c.away = append(c.away, visitor{client, p})
}

// visitor is a client that went away.
type visitor struct {
	client int
	payment
}

// comeBack has those who went away try again, when no request is kept any more.
func (c *clients) comeBack(ctx context.Context) error {
	err := c.system.awaitRecovered(ctx)
	var visits sync.WaitGroup
	for n, v := range c.away {
		random := rand.New(rand.NewPCG(c.system.scenario.Seed, uint64(1000+n)))
		visits.Go(func() { c.persist(ctx, v.client, random, v.payment) })
	}
	visits.Wait()
	return err
}

// sawKept reports whether the request of a key is kept, after a try that had no answer
// because its process is gone.
func (c *clients) sawKept(ctx context.Context, p payment, failed error) bool {
	var slow net.Error
	if ctx.Err() != nil || errors.As(failed, &slow) && slow.Timeout() {
		return false
	}
	kept := 0
	err := c.system.withDatabase(ctx, func(conn *pgx.Conn) (err error) {
		kept, err = c.system.countKept(ctx, conn, p.org, p.key)
		return err
	})
	return err == nil && kept > 0
}

// awaitRecovered waits until no request is kept that is not completed.
func (s *System) awaitRecovered(ctx context.Context) error {
	return s.withDatabase(ctx, func(conn *pgx.Conn) error {
		for deadline := time.Now().Add(recoveryLimit); ; {
			kept := 0
			for _, org := range s.tenants {
				n, err := s.countKept(ctx, conn, org, "")
				if err != nil {
					return err
				}
				kept += n
			}
			switch {
			case kept == 0:
				return nil
			case time.Now().After(deadline):
				return fmt.Errorf("%d requests are still kept, and not completed, after %s", kept, recoveryLimit)
			}
			wait(ctx.Done(), 50*time.Millisecond)
		}
	})
}

// countKept counts the kept requests of a tenant that are not completed, of one key or, when
// that is empty, of all.
func (s *System) countKept(ctx context.Context, conn *pgx.Conn, org uuid.UUID, key string) (n int, err error) {
	schema, err := s.directory.Schema(ctx, org)
	if err != nil {
		return 0, err
	}
	err = conn.QueryRow(ctx, fmt.Sprintf(`
		SELECT count(*)
		FROM %[1]s.idempotency_requests AS q
		LEFT JOIN %[1]s.idempotency_records AS r ON r.org_id = q.org_id AND r.key = q.key
		WHERE r.completed_at IS NULL AND q.key = coalesce(nullif($1, ''), q.key)`, schema.Quoted()), key).Scan(&n)
	return n, err
}
