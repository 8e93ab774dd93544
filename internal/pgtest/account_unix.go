//go:build unix

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is whom server programs run as.
type account struct {
	name     string
	uid, gid int
	switched bool // not the caller's own
}

// serverAccount returns the caller's own account or, since PostgreSQL refuses
// to run as root, postgres or else nobody.
func serverAccount() (*account, error) {
	if os.Geteuid() != 0 {
		return &account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if errors.Join(uidErr, gidErr) == nil && uid > 0 {
			return &account{name: name, uid: uid, gid: gid, switched: true}, nil
		}
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")
}

// attributes starts a process as the account, in a session of its own: Ctrl-C
// in a terminal does not reach it before the tests have ended.
func (a *account) attributes() *syscall.SysProcAttr {
	attr := ownSession()
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attr
}

// maxSocketFolder leaves room for "/.s.PGSQL.65535" in the 104 bytes that
// macOS has for the path of a socket; Linux has 108.
const maxSocketFolder = 104 - len("/.s.PGSQL.65535.lock") - 1

// makeFolder makes a folder that only the account can enter, in the first of
// the usual places that the account can reach and whose path is short enough
// for a socket.
func (a *account) makeFolder() (string, error) {
	var problems []error
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if err := a.canReach(base); err != nil {
			problems = append(problems, err)
			continue
		}
		folder, err := os.MkdirTemp(base, "pgidem-pgtest-")
		switch {
		case err != nil:
			problems = append(problems, err)
			continue
		case len(folder) > maxSocketFolder:
			err = fmt.Errorf("%s is too long for a socket's path", folder)
		case a.switched:
			err = os.Chown(folder, a.uid, a.gid)
		}
		if err == nil {
			return folder, nil
		}
		problems = append(problems, err, os.Remove(folder))
	}
	return "", fmt.Errorf("no place for a cluster: %w", errors.Join(problems...))
}

// canReach reports a folder on the way to path that another account may not
// pass.
func (a *account) canReach(path string) error {
	if !a.switched {
		return nil
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		stat, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if stat.Mode()&0o001 == 0 {
			return fmt.Errorf("%s is closed to user %s", dir, a.name)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
