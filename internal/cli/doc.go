// Package cli is what the commands of this module have in common: exit codes, signals,
// the connection to the database, and how they read values and write text.
package cli
