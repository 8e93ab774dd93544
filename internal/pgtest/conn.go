package pgtest

import (
	"context"
	"encoding/binary"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
)

// BehindPooler returns a copy of a configuration whose connections look as if a pooler stood
// before the server: it makes up the process ID that it gives at the start.
func BehindPooler(config *pgx.ConnConfig) *pgx.ConnConfig {
	return Dialing(config, func(conn net.Conn) net.Conn { return &pooledConn{Conn: conn} })
}

// Dialing returns a copy of a configuration each of whose connections is what wrap makes of
// the one to the server.
func Dialing(config *pgx.ConnConfig, wrap func(net.Conn) net.Conn) *pgx.ConnConfig {
	config = config.Copy()
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return wrap(conn), nil
	}
	return config
}

// pooledConn changes the process ID in BackendKeyData, a message of type K and 12 bytes in
// the server's first answers.
type pooledConn struct {
	net.Conn
	changed bool
}

func (c *pooledConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if i := strings.Index(string(p[:n]), "K\x00\x00\x00\x0c"); i >= 0 && !c.changed && n >= i+13 {
		c.changed = true
		binary.BigEndian.PutUint32(p[i+5:], binary.BigEndian.Uint32(p[i+5:])+1<<20)
	}
	return n, err
}
