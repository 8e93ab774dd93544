package cli

import (
	"errors"
	"fmt"
	"strings"
)

// Servers are the URLs of the databases of clusters, by the clusters' names.
type Servers map[string]string

// Add adds the servers of a list of CLUSTER=URL, separated by spaces. Its error has nothing
// of the list in it, which has passwords.
func (s Servers) Add(list string) error {
	for part := range strings.FieldsSeq(list) {
		name, databaseURL, ok := strings.Cut(part, "=")
		if !ok || name == "" || strings.ContainsAny(name, ":/@") {
			return errors.New("give CLUSTER=URL, such as eu=postgres://user@host:5432/name, with special characters of the password percent-encoded (a space is %20)")
		}
		if before, twice := s[name]; twice && before != databaseURL {
			return fmt.Errorf("cluster %s is given twice, with two URLs: give one", name)
		}
		s[name] = databaseURL
	}
	return nil
}
