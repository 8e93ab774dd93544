// Program is the service as a program of its own, to be built with another package time: the
// executable of the tests, which the processes are of otherwise, cannot be.
package main

import (
	"fmt"
	"os"

	"github.com/pgidem/pgidem/chaos/service"
)

func main() {
	service.MainIfAsked()
	fmt.Fprintln(os.Stderr, "program: it is started by the fault tests, with "+service.Env+" set: see make chaos")
	os.Exit(2)
}
