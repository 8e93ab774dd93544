package provision_test

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

var errCut = errors.New("cut off by the test")

// cutAfter returns a pool that leads where another does, and whose connections break once
// they have sent so many messages together, beside those that set them up.
func cutAfter(t *testing.T, pool *pgxpool.Pool, messages int) *pgxpool.Pool {
	t.Helper()
	cfg := pool.Config()
	dial := cfg.ConnConfig.DialFunc
	var sent atomic.Int64
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if sent.Load() > int64(messages) {
			return nil, errCut
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cuttable{Conn: conn, sent: &sent, messages: int64(messages)}, nil
	}
	cfg.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		conn.PgConn().Conn().(*cuttable).ready.Store(true)
		return nil
	}
	cut, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cut.Close)
	return cut
}

type cuttable struct {
	net.Conn
	ready    atomic.Bool
	sent     *atomic.Int64
	messages int64
}

// Write sends the last message that is let through, and breaks: its answer is lost.
func (c *cuttable) Write(b []byte) (int, error) {
	if !c.ready.Load() {
		return c.Conn.Write(b)
	}
	n := c.sent.Add(1)
	if n > c.messages+1 {
		return 0, errCut
	}
	written, err := c.Conn.Write(b)
	if n == c.messages+1 {
		c.Close()
		return 0, errCut
	}
	return written, err
}
