// Package pguuid has the UUID that goes to and comes from PostgreSQL in binary. The one
// of package uuid is a [driver.Valuer], so pgx writes it as text, at several times the
// cost, unless the owner of the pool has registered another way.
package pguuid

import (
	"errors"

	"github.com/jackc/pgx/v5/pgtype"
)

// UUID is a [pgtype.UUIDValuer] and a [pgtype.UUIDScanner]. It converts to and from a
// uuid.UUID and every other array of 16 bytes.
type UUID [16]byte

// UUIDValue implements [pgtype.UUIDValuer].
func (u UUID) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: u, Valid: true}, nil }

// ScanUUID implements [pgtype.UUIDScanner]. It fails for NULL.
func (u *UUID) ScanUUID(v pgtype.UUID) error {
	if !v.Valid {
		return errors.New("pguuid: NULL where a UUID was expected")
	}
	*u = v.Bytes
	return nil
}
