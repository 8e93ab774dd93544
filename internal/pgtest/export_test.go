package pgtest

// LocalOnly is what [NewServer] adds, for tests whose server ends differently.
func LocalOnly(c *config) { c.spec.LocalOnly = true }
