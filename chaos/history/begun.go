package history

// Begun returns the tries of clients that went away whose requests were begun: the claim
// was granted, or the request was seen to be kept after the process had died. Those are
// left out that nobody is bound to bring to their end, as the attempt itself ended without
// an outcome, or was told that it has none.
func (h *History) Begun() []Request {
	granted, ended := make(map[string]bool), make(map[string]bool) // by request
	for _, e := range h.Events {
		switch {
		case e.Kind == ClaimCall && e.Done && e.Outcome == "claimed":
			granted[e.Request] = true
		case e.Kind == ReleaseCall, e.Kind == CompleteCall && e.Err != "":
			ended[e.Request] = true
		}
	}
	var begun []Request
	for _, r := range h.Requests {
		if r.Left && r.Status == 0 && (granted[r.ID] || r.Kept) && !ended[r.ID] {
			begun = append(begun, r)
		}
	}
	return begun
}
