//go:build !linux

package migrations

import "syscall"

// boundUnacknowledged is nil where the system offers no bound.
var boundUnacknowledged func(network, address string, conn syscall.RawConn) error
