package idempotencytest

import "time"

// SetPatience sets how long the suites wait for what must come. Call it before they
// run.
func SetPatience(d time.Duration) { patience = d }
