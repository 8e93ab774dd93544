package moved_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pgidem/pgidem/internal/pgtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Tests{M: m}) }
