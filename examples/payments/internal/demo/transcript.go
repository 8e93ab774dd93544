package demo

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

const (
	width = 78 // of running text

	aside = "   "        // before what the demo does
	inset = "          " // before what belongs to a request or a response
	arrow = "       →  " // before a response
)

// Transcript writes what a demo shows, with colours or as plain text. It is not
// safe for concurrent use.
type Transcript struct {
	w      io.Writer
	colour bool
	steps  int
	checks int
}

// NewTranscript returns a Transcript that writes to w. Errors of w are ignored.
func NewTranscript(w io.Writer, colour bool) *Transcript {
	return &Transcript{w: w, colour: colour}
}

// The colours, as parameters of the SGR control sequence (ECMA-48 section 8.3.117).
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (t *Transcript) paint(colour, text string) string {
	if !t.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// Note writes a paragraph of running text.
func (t *Transcript) Note(format string, args ...any) {
	for _, line := range wrap(fmt.Sprintf(format, args...), width) {
		t.line("%s", line)
	}
}

// line writes one line.
func (t *Transcript) line(format string, args ...any) {
	_, _ = fmt.Fprintf(t.w, format+"\n", args...)
}

// step begins the next step of the script.
func (t *Transcript) step(title string) {
	t.steps++
	t.line("\n%s", t.paint(bold, fmt.Sprintf("%d. %s", t.steps, title)))
}

// aside says what the demo itself does.
func (t *Transcript) aside(text string) {
	for _, line := range wrap(text, width-len(aside)) {
		t.line(aside+"%s", t.paint(dim, line))
	}
}

// sent shows a request.
func (t *Transcript) sent(by, route, key string) {
	t.line("   %-5s  %s   Idempotency-Key: %s", by, route, t.paint(cyan, key))
}

// detail shows something of the request or the response above it.
func (t *Transcript) detail(format string, args ...any) {
	for _, line := range wrap(fmt.Sprintf(format, args...), width-len(inset)) {
		t.line(inset+"%s", line)
	}
}

// received shows a response: its status, the headers that this is all about, and
// the payment or the problem in its body.
func (t *Transcript) received(a answer) {
	t.line(arrow+"%s", t.paint(bold, a.status()))
	for _, name := range []string{replayHeader, retryHeader} {
		if value := a.header.Get(name); value != "" {
			t.line(inset+"%s: %s", name, t.paint(cyan, value))
		}
	}
	if id := a.paymentID(); id != "" {
		t.detail("payment %s", id)
	}
	if p := a.problem(); p.Code != "" {
		t.detail("%s: %s. %s", p.Code, p.Title, p.Detail)
	}
}

// tally shows how many answers were of one kind.
func (t *Transcript) tally(kind string, n int) {
	t.line(arrow+"%3d × %s", n, kind)
}

// table shows the records of a tenant.
func (t *Transcript) table(tenant, schema string, records []record) {
	const layout = "     %-9s %-12s %6s   %s"
	t.line("   %s, in schema %s", tenant, schema)
	t.line("%s", t.paint(dim, fmt.Sprintf(layout, "key", "state", "status", "expires")))
	for _, r := range records {
		status := "-"
		if r.status != 0 {
			status = strconv.Itoa(r.status)
		}
		expires := "in " + r.expires.Truncate(time.Second).String()
		if r.expires <= 0 {
			expires = (-r.expires).Truncate(time.Second).String() + " ago"
		}
		t.line(layout, r.key, r.state, status, expires)
	}
}

// claim is one of the facts behind a sentence of the transcript.
type claim struct {
	text  string
	holds bool
}

// that claims that something holds.
func that(text string, holds bool) claim { return claim{text, holds} }

// equal claims that something has the value that is wanted.
func equal[T comparable](what string, got, want T) claim {
	return claim{fmt.Sprintf("%s: %v, which should be %v", what, got, want), got == want}
}

// prove writes a sentence with a tick if all of the claims hold. Else it writes it
// with a cross and the first claim that does not, which it returns as an error.
func (t *Transcript) prove(sentence string, claims ...claim) error {
	for _, c := range claims {
		if !c.holds {
			t.line("   %s %s", t.paint(red, "✗"), sentence)
			t.line("     %s", t.paint(red, c.text))
			return fmt.Errorf("step %d did not show what it should: %s", t.steps, c.text)
		}
	}
	t.checks += len(claims)
	t.line("   %s %s", t.paint(green, "✓"), sentence)
	return nil
}

func (t *Transcript) summary(format string, args ...any) {
	t.line("\n%s", t.paint(green, fmt.Sprintf(format, args...)))
}

// wrap breaks a text into lines of at most the given number of bytes, where its
// words allow.
func wrap(text string, most int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > most:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
