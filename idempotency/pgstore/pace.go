package pgstore

import "time"

// pace says how many runs are worth having under way at once. Where each takes about as
// long as the shortest of late, it is the network or the disk that takes the time, and more
// at once get more done. Where they take much longer they wait for each other, for the
// processors of the server or of this process: fewer that do more each take less of those.
//
// It is what congestion control of the kind of TCP Vegas does with round trip times.
type pace struct {
	least, most float64
	room        float64

	shortest, before time.Duration // of this window and of the one before
	ends             time.Time     // of this window
}

const (
	paceWindow = 5 * time.Second
	paceStep   = 0.05
	paceSlow   = 2 // times the shortest
)

func newPace(least, most int) pace {
	most = min(most, 1<<30) // what a float64 can count
	return pace{least: float64(min(least, most)), most: float64(most), room: float64(most)}
}

// limit is how many runs there may be at once.
func (p *pace) limit() int { return int(p.room) }

// saw takes note of a run that has ended at the given time, and of whether others wait.
func (p *pace) saw(took time.Duration, now time.Time, othersWait bool) {
	if now.After(p.ends) {
		p.before, p.shortest, p.ends = p.shortest, took, now.Add(paceWindow)
	}
	p.shortest = min(p.shortest, took)
	switch {
	case took > paceSlow*p.quickest():
		p.room = max(p.least, p.room-paceStep)
	case othersWait:
		p.room = min(p.most, p.room+paceStep)
	}
}

// quickest is what the shortest run of late has taken, 0 before there was one.
func (p *pace) quickest() time.Duration {
	if p.before > 0 {
		return min(p.before, p.shortest)
	}
	return p.shortest
}
