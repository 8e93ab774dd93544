package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/pgidem/pgidem/migrations"
)

func (a *app) initVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "init",
		Short: "make the registry of tenants, or migrate it.",
		Long: `idem-tenants init makes the control schema, in which the registry of tenants is kept,
or migrates it to the newest version. It may run at every deployment, and needs a direct
connection, not one through a pooler.

With --json it prints one object.`,
		Example:           "  DATABASE_URL=postgres://owner@db/app idem-tenants init\n  idem-tenants init --control-schema tenants",
		Args:              arguments(0, 0, "no arguments"),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			schema, err := a.controlSchema()
			if err != nil {
				return err
			}
			if _, err := a.pool(ctx, ""); err != nil { // which tells what cannot be reached
				return err
			}
			database, err := a.database("")
			if err != nil {
				return err
			}
			if err := migrations.UpControl(ctx, database.DirectURL(), schema); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					ControlSchema string `json:"control_schema"`
				}{schema.String()})
			}
			_, err = fmt.Fprintf(a.stdout, "the registry is ready in schema %s\n", schema)
			return err
		},
	}
}
