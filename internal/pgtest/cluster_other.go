//go:build !unix

package pgtest

import (
	"context"
	"errors"
	"runtime"
	"syscall"
)

func startLocal(context.Context, spec, logf) (backend, error) {
	return nil, errors.New("throw-away clusters are not supported on " + runtime.GOOS)
}

func ownSession() *syscall.SysProcAttr { return nil }
