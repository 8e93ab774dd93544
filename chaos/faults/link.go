package faults

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// The two ways of a connection.
const (
	requests = iota
	answers
)

// Codes that stand where a startup message has its protocol version: PostgreSQL
// documentation, "Message Formats".
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
)

// maxMessage bounds a message, so that a stream out of step is noticed.
const maxMessage = 64 << 20

var errOutOfStep = errors.New("faults: not a message of PostgreSQL's protocol")

// link is one connection of a client through the proxy.
type link struct {
	proxy  *Proxy
	client net.Conn
	gates  [2]gate
	done   chan struct{}
	once   sync.Once

	texts  map[string]string // of prepared statements by name; the requests' goroutine's own
	atSent []*Strike         // that strike when this round trip has been sent; likewise

	mu      sync.Mutex
	server  net.Conn
	ending  bool    // half-closed: to be closed when the gates open
	sent    int     // round trips sent
	replied int     // round trips answered
	armed   *Strike // that strikes when the round trip number armedAt has been answered
	armedAt int
}

func newLink(p *Proxy, client net.Conn) *link {
	return &link{proxy: p, client: client, done: make(chan struct{}), texts: make(map[string]string)}
}

// close closes both sides and ends both goroutines.
func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.client.Close()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.server != nil {
			_ = l.server.Close()
		}
	})
}

func (l *link) run() {
	in := bufio.NewReader(l.client)
	startup, code, err := l.startup(in)
	if err != nil || !l.pass(requests) {
		return
	}
	server, err := (&net.Dialer{}).Dial(l.proxy.network, l.proxy.addr)
	if err != nil {
		return
	}
	l.mu.Lock()
	l.server, l.sent = server, 1 // the answer to the startup ends as that to a round trip
	l.mu.Unlock()
	select {
	case <-l.done: // close may not have seen it
		_ = server.Close()
		return
	default:
	}
	if code == codeCancel {
		l.cancel(server, startup)
		return
	}
	if _, err := server.Write(startup); err != nil {
		return
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		defer l.close()
		l.pumpAnswers(bufio.NewReader(server))
	}()
	l.pumpRequests(in, server)
	l.close()
	<-answered
	if l.armed != nil {
		l.atSent = append(l.atSent, l.armed)
	}
	for _, strike := range l.atSent {
		strike.giveBack()
	}
}

// startup reads the message that opens a connection, and declines TLS and GSS before it.
func (l *link) startup(in *bufio.Reader) (message []byte, code uint32, err error) {
	for {
		var head [8]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return nil, 0, err
		}
		size, code := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
		if size < 8 || size > maxMessage {
			return nil, 0, errOutOfStep
		}
		if code == codeTLS || code == codeGSS {
			if _, err := l.client.Write([]byte{'N'}); err != nil {
				return nil, 0, err
			}
			continue
		}
		message := append(head[:], make([]byte, size-8)...)
		_, err := io.ReadFull(in, message[8:])
		return message, code, err
	}
}

// cancel hands on a request to cancel a statement. The server answers by closing.
func (l *link) cancel(server net.Conn, message []byte) {
	l.proxy.cancels.Add(1)
	if l.proxy.dropCancels.Load() {
		l.proxy.dropped.Add(1)
		return
	}
	if _, err := server.Write(message); err == nil {
		_, _ = io.Copy(io.Discard, server)
	}
}

// readMessage reads one message: a byte that says which, and its length without that.
func readMessage(in *bufio.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size < 4 || size > maxMessage {
		return nil, errOutOfStep
	}
	message := append(head[:], make([]byte, size-4)...)
	_, err := io.ReadFull(in, message[5:])
	return message, err
}

// pass waits until what goes the given way may pass, and reports whether it may at all.
func (l *link) pass(way int) bool {
	if !l.gates[way].wait(l.done) || !l.proxy.gates[way].wait(l.done) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.ending
}

func (l *link) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-l.done:
	}
}

func (l *link) pumpRequests(in *bufio.Reader, server net.Conn) {
	var held []byte
	flush := func() bool {
		if len(held) == 0 {
			return true
		}
		l.sleep(time.Duration(l.proxy.delay.Load()))
		if !l.pass(requests) {
			return false
		}
		_, err := server.Write(held)
		held = held[:0]
		return err == nil
	}
	for {
		message, err := readMessage(in)
		if err != nil {
			l.pass(requests) // the end of a connection goes into a black hole like the rest
			return
		}
		kind := message[0]
		if sql, runs := l.statement(message); runs {
			if strike := l.proxy.take(sql); strike != nil {
				switch strike.fault.Moment {
				case Before:
					if !flush() {
						strike.giveBack()
						return
					}
					if !l.strike(strike, requests, "") {
						return
					}
				case Sent:
					l.atSent = append(l.atSent, strike)
				case Answered:
					l.arm(strike)
				}
			}
		}
		held = append(held, message...)
		ends := kind == 'S' || kind == 'Q' || kind == 'F' // a round trip, which is answered by ReadyForQuery
		if ends {
			l.mu.Lock()
			l.sent++
			l.mu.Unlock()
		}
		if ends {
			l.holdAnswers()
		}
		if (ends && len(l.atSent) > 0 || in.Buffered() == 0) && !flush() {
			return
		}
		if !ends {
			continue
		}
		for len(l.atSent) > 0 {
			strike := l.atSent[0]
			l.atSent = l.atSent[1:]
			if !l.strike(strike, answers, "") {
				return
			}
		}
	}
}

// holdAnswers shuts the way of the answers before a round trip is sent if a fault that keeps
// them back is to strike as soon as it has been: the server may be faster than that.
func (l *link) holdAnswers() {
	for _, strike := range l.atSent {
		if kind := strike.fault.Kind; kind != Watch && kind != BlackHoleRequests {
			l.gates[answers].shut(0)
		}
	}
}

// arm has the fault strike when the round trip that is being sent has been answered, unless
// another one will then.
func (l *link) arm(strike *Strike) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.armed != nil {
		strike.giveBack()
		return
	}
	l.armed, l.armedAt = strike, l.sent+1
}

// statement returns the text of the statement that a message of the client's runs, if it
// runs one. It remembers what is prepared.
func (l *link) statement(message []byte) (sql string, runs bool) {
	body := message[5:]
	text := func() string {
		s, rest, _ := bytes.Cut(body, []byte{0})
		body = rest
		return string(s)
	}
	switch message[0] {
	case 'Q':
		return text(), true
	case 'P':
		name := text()
		l.texts[name] = text()
	case 'B':
		text() // the portal
		return l.texts[text()], true
	}
	return "", false
}

func (l *link) pumpAnswers(in *bufio.Reader) {
	var held []byte
	tag := ""
	for {
		message, err := readMessage(in)
		if err != nil {
			l.pass(answers)
			return
		}
		held = append(held, message...)
		switch message[0] {
		case 'C':
			tag = string(bytes.TrimRight(message[5:], "\x00"))
		case 'E':
			tag = sqlState(message[5:])
		}
		strike := l.answered(message[0] == 'Z')
		switch {
		case strike != nil:
			if !l.strike(strike, answers, tag) {
				return
			}
		case l.holdsBack(), in.Buffered() > 0:
			continue
		}
		l.sleep(time.Duration(l.proxy.delay.Load()))
		if !l.pass(answers) {
			return
		}
		if _, err := l.client.Write(held); err != nil {
			return
		}
		held = held[:0]
	}
}

// answered notes that a round trip may have been answered, and returns what is to strike
// then.
func (l *link) answered(ready bool) *Strike {
	if !ready {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replied++
	if l.armed == nil || l.replied < l.armedAt {
		return nil
	}
	strike := l.armed
	l.armed = nil
	return strike
}

// holdsBack reports whether an answer is kept until it is whole.
func (l *link) holdsBack() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.armed != nil
}

// strike does to the connection what a fault says, and reports whether it goes on.
func (l *link) strike(s *Strike, way int, tag string) bool {
	f := s.fault
	switch f.Kind {
	case BlackHole:
		l.gates[requests].shut(f.For)
		l.gates[answers].shut(f.For)
	case BlackHoleRequests:
		l.gates[requests].shut(f.For)
	case BlackHoleAnswers:
		l.gates[answers].shut(f.For)
	case HalfClose:
		l.mu.Lock()
		l.ending = true
		l.mu.Unlock()
		l.gates[requests].shut(f.For)
		l.gates[answers].shut(f.For)
		if c, ok := l.client.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	case Delay:
		l.gates[way].shut(f.For)
	}
	s.struck(tag)
	switch f.Kind {
	case Reset:
		if c, ok := l.client.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		fallthrough
	case Cut:
		l.close()
		return false
	}
	return true
}

// sqlState returns the code of an error message, field C.
func sqlState(fields []byte) string {
	for field := range bytes.SplitSeq(fields, []byte{0}) {
		if len(field) > 1 && field[0] == 'C' {
			return string(field[1:])
		}
	}
	return "error"
}
