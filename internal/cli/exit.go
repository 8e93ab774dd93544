package cli

// Exit codes, for cron, scripts and supervisors to act on. They mean the same in every
// command that has them.
const (
	ExitOK          = 0
	ExitFailed      = 1 // at least one tenant failed
	ExitUsage       = 2 // a flag, an argument or a variable is wrong
	ExitUnreachable = 3 // the database could not be reached, or its tenants not be listed
	ExitUnfinished  = 4 // some tenants were left for another run; none failed
	ExitSignal      = 128
)
