package migrations

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/pgidem/pgidem/tenancy"
)

//go:embed control/*.sql
var controlFiles embed.FS

// ControlVersionTable is the table in the control schema in which goose keeps the versions
// of the migrations of [UpControl].
const ControlVersionTable = "tenants_db_version"

var controlSet = set{files: sub(controlFiles, "control"), versions: ControlVersionTable}

// UpControl creates the control schema, in which package registry keeps the tenants, if it
// is missing, and migrates it to the newest version:
//
//	control, err := tenancy.ParseSchema(registry.DefaultSchema)
//	err = migrations.UpControl(ctx, databaseURL, control)
//
// It may run at every deployment and from several places at once, and wants of connection
// and role what [Up] does. Whoever changes tenants needs INSERT, UPDATE and DELETE on the
// table tenants besides SELECT; a service that only looks them up needs USAGE on the schema
// and SELECT.
func UpControl(ctx context.Context, databaseURL string, schema tenancy.Schema) error {
	return upControl(ctx, databaseURL, connectTimeout, schema)
}

func upControl(ctx context.Context, databaseURL string, patience time.Duration, schema tenancy.Schema) error {
	cfg, err := connConfig(databaseURL, patience)
	if err != nil {
		return err
	}
	if err := up(ctx, cfg, schema, controlSet); err != nil {
		return fmt.Errorf("migrations: control schema %s: %w", schema, err)
	}
	return nil
}
