package routers_test

import (
	"testing"

	"go.uber.org/goleak"
)

// The server of package pgtest ends with the process.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
