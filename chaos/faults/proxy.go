package faults

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Proxy stands between a service and its PostgreSQL, on a port of 127.0.0.1. It speaks no
// TLS. Make one with [NewProxy] and close it.
type Proxy struct {
	network, addr string // of the server
	listener      net.Listener
	done          chan struct{}
	running       sync.WaitGroup

	gates       [2]gate
	delay       atomic.Int64
	dropCancels atomic.Bool

	accepted, cancels, dropped atomic.Int64

	mu      sync.Mutex
	strikes []*Strike
	links   map[*link]struct{}
}

// NewProxy starts a proxy before the server that the configuration leads to.
func NewProxy(config *pgxpool.Config) (*Proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faults: listen on loopback: %w", err)
	}
	p := &Proxy{listener: listener, done: make(chan struct{}), links: make(map[*link]struct{})}
	p.network, p.addr = pgconn.NetworkAddress(config.ConnConfig.Host, config.ConnConfig.Port)
	p.running.Go(p.accept)
	return p, nil
}

// Through returns a copy of a pool's configuration whose connections go through the proxy.
func (p *Proxy) Through(config *pgxpool.Config) *pgxpool.Config {
	config = config.Copy()
	addr := p.listener.Addr().(*net.TCPAddr)
	config.ConnConfig.Host, config.ConnConfig.Port = addr.IP.String(), uint16(addr.Port)
	config.ConnConfig.TLSConfig, config.ConnConfig.Fallbacks = nil, nil
	return config
}

// URL returns the database's URL changed so that it leads through the proxy, for a service
// in another process.
func (p *Proxy) URL(databaseURL string) (string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return "", fmt.Errorf("faults: the database's URL: %w", err)
	}
	query := u.Query()
	query.Del("host") // which would win, and name the folder of a socket, say
	query.Del("port")
	query.Set("sslmode", "disable")
	u.Host, u.RawQuery = p.listener.Addr().String(), query.Encode()
	return u.String(), nil
}

// Close cuts all connections, takes no more, and waits until all goroutines have ended.
func (p *Proxy) Close() {
	close(p.done)
	_ = p.listener.Close()
	p.CutAll()
	p.running.Wait()
}

// Inject arms a fault. Of several that mean one statement the first that was armed strikes.
func (p *Proxy) Inject(f Fault) *Strike {
	s := &Strike{fault: f, left: max(f.Times, 1), first: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strikes = append(p.strikes, s)
	return s
}

// CutAll closes all connections.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// DelayAll holds whatever goes either way up for d, which no delay is added to by a
// statement's own. Zero ends it.
func (p *Proxy) DelayAll(d time.Duration) { p.delay.Store(int64(d)) }

// HoldAll makes a black hole of the proxy, for d or, when that is zero, until [Proxy.Heal].
// New connections are taken and get no further.
func (p *Proxy) HoldAll(d time.Duration) {
	for i := range p.gates {
		p.gates[i].shut(d)
	}
}

// DropCancels says whether requests to cancel a statement are lost.
func (p *Proxy) DropCancels(drop bool) { p.dropCancels.Store(drop) }

// Heal ends all that lasts and disarms what has not struck. What was held goes on, also to
// a server whose client has gone.
func (p *Proxy) Heal() {
	p.DelayAll(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.strikes {
		s.disarm()
	}
	p.strikes = nil
	for i := range p.gates {
		p.gates[i].open()
	}
	for l := range p.links {
		for i := range l.gates {
			l.gates[i].open()
		}
	}
}

// Stats counts what a proxy did.
type Stats struct {
	Accepted       int64 // connections, those that bring requests to cancel among them
	Cancels        int64 // requests to cancel a statement
	CancelsDropped int64
}

// Stats returns what the proxy did so far.
func (p *Proxy) Stats() Stats {
	return Stats{p.accepted.Load(), p.cancels.Load(), p.dropped.Load()}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client's affair
		}
		p.accepted.Add(1)
		l := newLink(p, client)
		if !p.add(l) {
			l.close()
			return
		}
		p.running.Go(func() {
			defer p.remove(l)
			l.run()
		})
	}
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.links[l] = struct{}{}
		return true
	}
}

func (p *Proxy) remove(l *link) {
	l.close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// take returns the fault that is to strike at a statement, if there is one.
func (p *Proxy) take(sql string) *Strike {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.strikes {
		if s.take(sql) {
			return s
		}
	}
	return nil
}

// gate lets through what comes while it is open.
type gate struct {
	mu    sync.Mutex
	shutC chan struct{} // closed when it opens; nil while it is open
	timer *time.Timer
}

// shut shuts the gate for d or, when that is zero, until open.
func (g *gate) shut(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shutC == nil {
		g.shutC = make(chan struct{})
	}
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if d > 0 {
		g.timer = time.AfterFunc(d, g.open)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if g.shutC != nil {
		close(g.shutC)
		g.shutC = nil
	}
}

// wait returns when the gate is open, or false when done is closed before.
func (g *gate) wait(done <-chan struct{}) bool {
	g.mu.Lock()
	shut := g.shutC
	g.mu.Unlock()
	if shut == nil {
		return true
	}
	select {
	case <-shut:
		return true
	case <-done:
		return false
	}
}
