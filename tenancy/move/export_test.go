package move

import "time"

// Settle is how long processes have by default.
const Settle = settle

// WithSettle sets how long processes may take to hear that a tenant is suspended.
func WithSettle(d time.Duration) Option {
	return func(m *Mover) error {
		m.settle = d
		return nil
	}
}

// WithOrphanPatience sets how long server processes may take to end that were told to.
func WithOrphanPatience(d time.Duration) Option {
	return func(m *Mover) error {
		m.orphanPatience = d
		return nil
	}
}

// WithLooked has f called when Move has looked at the tenant and not yet locked it.
func WithLooked(f func()) Option {
	return func(m *Mover) error {
		m.looked = f
		return nil
	}
}
