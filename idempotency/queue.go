package idempotency

import "time"

// place is embedded in what stands in a [dueQueue].
type place struct {
	due   time.Time
	index int // in the queue, -1 outside
}

func (p *place) inQueue() *place { return p }

// dueQueue is a heap, for package heap, with what is due first in front.
type dueQueue[T interface{ inQueue() *place }] []T

// Len implements [heap.Interface].
func (q dueQueue[T]) Len() int { return len(q) }

// Less implements [heap.Interface].
func (q dueQueue[T]) Less(i, j int) bool { return q[i].inQueue().due.Before(q[j].inQueue().due) }

// Swap implements [heap.Interface].
func (q dueQueue[T]) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].inQueue().index, q[j].inQueue().index = i, j
}

// Push implements [heap.Interface].
func (q *dueQueue[T]) Push(x any) {
	item := x.(T)
	item.inQueue().index = len(*q)
	*q = append(*q, item)
}

// Pop implements [heap.Interface].
func (q *dueQueue[T]) Pop() any {
	last := len(*q) - 1
	item := (*q)[last]
	item.inQueue().index = -1
	clear((*q)[last:])
	*q = (*q)[:last]
	return item
}
