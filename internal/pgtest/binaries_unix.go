//go:build unix

package pgtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// packageFolders is where distributions and installers put server binaries
// without putting them into PATH.
var packageFolders = []string{
	"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                                   // Red Hat, Fedora (PGDG)
	"/usr/libexec/postgresql*",                           // Alpine
	"/opt/homebrew/opt/postgresql*/bin",                  // Homebrew on Apple silicon
	"/usr/local/opt/postgresql*/bin",                     // Homebrew on Intel
	"/opt/local/lib/postgresql*/bin",                     // MacPorts
	"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
	"/usr/local/pgsql/bin",                               // built from source
}

// binaries is a folder with initdb and postgres.
type binaries struct {
	folder  string
	major   int
	version string // "15.18"
}

func (b binaries) path(program string) string { return filepath.Join(b.folder, program) }

// findBinaries returns the folders that hold a server of a supported version,
// the one to try first in front: $PG_BINDIR, PATH, then the package folders,
// newest version first. The error tells why there is none.
func findBinaries(ctx context.Context, as *account, bindir string, log logf) ([]binaries, error) {
	var found []binaries
	var problems []error
	add := func(folders ...string) {
		var here []binaries
		for _, folder := range folders {
			b, err := inspect(ctx, folder, as)
			switch {
			case err != nil:
				problems = append(problems, err)
			case !slices.ContainsFunc(slices.Concat(found, here), b.sameAs):
				here = append(here, b)
			}
		}
		slices.SortStableFunc(here, func(a, b binaries) int { return cmp.Compare(b.major, a.major) })
		found = append(found, here...)
	}

	if bindir != "" {
		add(bindir)
		if len(found) == 0 {
			log("PG_BINDIR is passed over: %v", problems[0])
		}
	}
	for _, folder := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(folder) && holdsServer(folder) {
			add(folder)
		}
	}
	var folders []string
	for _, pattern := range packageFolders {
		matches, _ := filepath.Glob(pattern) // the patterns are well-formed
		folders = append(folders, slices.DeleteFunc(matches, func(f string) bool { return !holdsServer(f) })...)
	}
	add(folders...)

	if len(found) == 0 {
		problems = append(problems, errors.New("no initdb and postgres in $PG_BINDIR, in $PATH or where packages put them"))
		return nil, errors.Join(problems...)
	}
	return found, nil
}

func holdsServer(folder string) bool {
	return isProgram(filepath.Join(folder, "initdb")) && isProgram(filepath.Join(folder, "postgres"))
}

func isProgram(path string) bool {
	stat, err := os.Stat(path)
	return err == nil && stat.Mode().IsRegular() && stat.Mode()&0o111 != 0
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) ((\d+)[0-9a-z.]*)`)

// inspect runs a server's -V as the account that is to run the server, which
// shows as well that it can.
func inspect(ctx context.Context, folder string, as *account) (binaries, error) {
	if !holdsServer(folder) {
		return binaries{}, fmt.Errorf("%s holds no initdb and postgres", folder)
	}
	if real, err := filepath.EvalSymlinks(filepath.Join(folder, "postgres")); err == nil && holdsServer(filepath.Dir(real)) {
		folder = filepath.Dir(real)
	}
	b := binaries{folder: folder}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.path("postgres"), "-V")
	cmd.Dir = "/"
	cmd.Env = serverEnviron()
	cmd.SysProcAttr = as.attributes()
	out, err := cmd.Output()
	if err != nil {
		return binaries{}, fmt.Errorf("%s -V: %w", b.path("postgres"), err)
	}
	match := versionLine.FindStringSubmatch(string(out))
	if match == nil {
		return binaries{}, fmt.Errorf("%s -V: no version in %q", b.path("postgres"), strings.TrimSpace(string(out)))
	}
	b.version = match[1]
	b.major, _ = strconv.Atoi(match[2])
	if b.major < minVersion {
		return binaries{}, fmt.Errorf("%s holds PostgreSQL %s, %d is the oldest supported", folder, b.version, minVersion)
	}
	return b, nil
}

func (b binaries) sameAs(other binaries) bool { return b.folder == other.folder }

// serverEnviron is the environment of server programs: the caller's without the
// variables that PostgreSQL and its libraries obey, and with messages in
// English.
func serverEnviron() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") ||
			strings.HasPrefix(kv, "LANG") || strings.HasPrefix(kv, "TZ=")
	})
	return append(env, "LC_ALL=C", "TZ=UTC")
}
