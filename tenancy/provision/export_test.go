package provision

// WithStep has fn called after each step, which fails if fn does.
func WithStep(fn func(string) error) Option {
	return func(p *Provisioner) error {
		p.step = fn
		return nil
	}
}
