package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Boolean returns a function that reads a truth value into to.
func Boolean(to *bool) func(string) error {
	return func(value string) (err error) {
		if *to, err = strconv.ParseBool(value); err != nil {
			return errors.New("give true or false")
		}
		return nil
	}
}

// Number returns a function that reads a whole number from 1 to most into to.
func Number(to *int, most int) func(string) error {
	return func(value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > most {
			return fmt.Errorf("give a whole number from 1 to %d", most)
		}
		*to = n
		return nil
	}
}

// Duration returns a function that reads a duration into to, which is 0 or a millisecond
// at least.
func Duration(to *time.Duration) func(string) error {
	return func(value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d != 0 && d < time.Millisecond {
			return errors.New("give a number with a unit, such as 500ms, 30s, 15m or 1h, of at least 1ms, or 0")
		}
		*to = d
		return nil
	}
}

// Variable returns the name of the environment variable that stands for a flag of a
// command: DATABASE_URL for database-url, and for others that of the command in front of
// that of the flag.
func Variable(command, flag string) string {
	if flag == "database-url" {
		return "DATABASE_URL"
	}
	return strings.ToUpper(strings.ReplaceAll(command+"_"+flag, "-", "_"))
}
