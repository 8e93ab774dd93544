package idempotency

import "time"

// place is embedded in what stands in a [dueQueue].
type place struct {
	index int // in the queue, -1 when it has left
}

func (p *place) at() *place { return p }

// dueQueue is a heap with what is due first in front. The times, counted from whenever the
// owner likes, stand in it and not in the items, so that moving one touches no more of the
// others' memory than it must.
type dueQueue[T interface{ at() *place }] []dueItem[T]

type dueItem[T any] struct {
	due  time.Duration
	item T
}

// push adds an item, which must not be in the queue.
func (q *dueQueue[T]) push(item T, due time.Duration) {
	*q = append(*q, dueItem[T]{due, item})
	q.up(len(*q) - 1)
}

// remove takes an item out, which must be in the queue.
func (q *dueQueue[T]) remove(item T) {
	i, last := item.at().index, len(*q)-1
	item.at().index = -1
	moved := (*q)[last]
	clear((*q)[last:])
	*q = (*q)[:last]
	if i < last {
		(*q)[i] = moved
		q.down(i)
		q.up(moved.item.at().index)
	}
}

// up moves what stands at i to the front until it meets what is not due later.
func (q *dueQueue[T]) up(i int) {
	items := *q
	it := items[i]
	for i > 0 {
		parent := (i - 1) / 2
		if it.due >= items[parent].due {
			break
		}
		items[i] = items[parent]
		items[i].item.at().index = i
		i = parent
	}
	items[i] = it
	it.item.at().index = i
}

// down moves what stands at i to the back until it meets what is not due earlier.
func (q *dueQueue[T]) down(i int) {
	items := *q
	it := items[i]
	for {
		child := 2*i + 1
		if child >= len(items) {
			break
		}
		if right := child + 1; right < len(items) && items[right].due < items[child].due {
			child = right
		}
		if items[child].due >= it.due {
			break
		}
		items[i] = items[child]
		items[i].item.at().index = i
		i = child
	}
	items[i] = it
	it.item.at().index = i
}
