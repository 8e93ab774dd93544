package check

import (
	"net/http"

	"github.com/pgidem/pgidem/chaos/history"
)

// Recovery checks that the requests which were begun were brought to their end without
// their clients: those that come back find the finished response.
func Recovery(h *history.History) (found []Violation) {
	begun := make(map[id]history.Request)
	for _, r := range h.Begun() {
		begun[id{r.Org, r.Key}] = r
	}
	for _, r := range h.Requests {
		k := id{r.Org, r.Key}
		first, ok := begun[k]
		if !ok || !r.Returned || r.Status == 0 || r.Status == http.StatusServiceUnavailable {
			continue
		}
		if r.Status != http.StatusCreated || !r.Replayed {
			found = append(found, k.violation(NotRecovered, "request %s was begun, and %s was told %d %s", first.ID, r.ID, r.Status, r.Code))
		}
	}
	return found
}
