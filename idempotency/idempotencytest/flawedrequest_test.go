package idempotencytest_test

// KeepsRequests implements [idempotency.RequestStore].
func (s *flawedStore) KeepsRequests() {}

// isInterrupted reports whether there is an attempt that a recovery may take over; what is
// in flight, completed or another request's has been told by then.
func (s *flawedStore) isInterrupted(at rowKey) bool {
	r, found := s.rows[at]
	switch s.flaw {
	case "a recovery claims what is absent":
		return !found || s.kept[at]
	case "a recovery claims what has expired":
		return found && s.kept[at]
	case "a recovery takes over what keeps no request":
		return found && !s.absent(r)
	}
	return found && !s.absent(r) && s.kept[at]
}
