//go:build !linux

package pgtest

import (
	"context"
	"errors"
	"runtime"
)

func installAndStart(context.Context, spec, logf) (backend, error) {
	return nil, errors.New("no way to install it on " + runtime.GOOS)
}
