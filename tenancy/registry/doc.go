// Package registry is a directory of tenants in PostgreSQL.
package registry
