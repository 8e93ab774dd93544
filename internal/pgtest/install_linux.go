package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

const (
	clusterConf       = "/etc/postgresql-common/createcluster.conf"
	clusterConfFolder = "/etc/postgresql-common/createcluster.d"
	installLock       = "/var/lock/pgtest-install.lock"
)

// installAndStart installs the distribution's packages of PostgreSQL, where it
// is Debian or a descendant and the caller is root, and makes a cluster of
// them.
func installAndStart(ctx context.Context, s spec, log logf) (backend, error) {
	switch {
	case os.Geteuid() != 0:
		return nil, errors.New("apt-get would need root")
	case !isDebian():
		return nil, errors.New("the distribution is not a descendant of Debian, so apt-get does not help")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, errors.New("apt-get is not installed")
	}
	// The tests of several packages come here at once. The first one installs.
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil { // /var/lock is a link to it, which dangles where /run is empty
		return nil, err
	}
	lock, err := os.OpenFile(installLock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }() // releases it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("%s: %w", installLock, err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if !hasServer(ctx, s) {
		log("installing the distribution's postgresql with apt-get (it stays installed; no cluster of the system's is made)")
		if err := install(ctx); err != nil {
			log("%v", err)
			return nil, err
		}
	}
	if !hasServer(ctx, s) {
		packages := strings.Join(serverPackages(), " ")
		return nil, fmt.Errorf("apt-get says that %s is installed, yet the binaries are missing: apt-get install --reinstall %s", packages, packages)
	}
	return startLocal(ctx, s, log)
}

func hasServer(ctx context.Context, s spec) bool {
	as, err := serverAccount()
	if err != nil {
		return false
	}
	_, err = findBinaries(ctx, as, s.Env.BinDir, func(string, ...any) {})
	return err == nil
}

func isDebian() bool {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(release)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if name != "ID" && name != "ID_LIKE" {
			continue
		}
		for _, id := range strings.Fields(strings.Trim(value, `"'`)) {
			if id == "debian" || id == "ubuntu" {
				return true
			}
		}
	}
	return false
}

// install installs the server without the cluster that its package makes and
// starts by default. What is installed already is not upgraded, since that would
// restart the system's servers. Between its steps it heeds ctx; within them a half-installed
// system would stay behind.
func install(ctx context.Context) (err error) {
	// Old package lists may do, so only what the installation says counts.
	updateErr := aptGet("update")
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := aptGet("install", "-y", "--no-install-recommends", "--no-upgrade", "postgresql-common"); err != nil {
		return errors.Join(updateErr, err)
	}
	restore, err := forbidMainCluster()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return aptGet("install", "-y", "--no-install-recommends", "--no-upgrade", "postgresql")
}

// forbidMainCluster tells the packages' scripts to make no cluster, until
// restore is called.
func forbidMainCluster() (restore func() error, err error) {
	madeFolder := os.Mkdir(clusterConfFolder, 0o755) == nil
	// The last file by name has the last word.
	file := filepath.Join(clusterConfFolder, "zz-pgtest.conf")
	restore = func() error {
		err := os.Remove(file)
		if madeFolder {
			err = errors.Join(err, os.Remove(clusterConfFolder))
		}
		return err
	}
	text := "# Written during an installation for tests. It can be removed.\ncreate_main_cluster = false\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	out, err := exec.Command("pg_conftool", clusterConf, "show", "-bs", "create_main_cluster").CombinedOutput()
	if answer := strings.TrimSpace(string(out)); err != nil || !slices.Contains([]string{"false", "off", "no", "0"}, answer) {
		err := fmt.Errorf("%s does not heed %s, so that the package would make a cluster of the system's: %q", clusterConf, file, answer)
		return nil, errors.Join(err, restore())
	}
	return restore, nil
}

func aptGet(args ...string) error {
	cmd := exec.Command("apt-get", append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, lastLines(string(out)))
	}
	return nil
}

var serverPackage = regexp.MustCompile(`(?m)^(postgresql-[0-9]+) installed$`)

// serverPackages returns the installed packages that should hold the binaries.
func serverPackages() []string {
	out, err := exec.Command("dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", "postgresql-[0-9]*").Output()
	var names []string
	if err == nil {
		for _, match := range serverPackage.FindAllSubmatch(out, -1) {
			names = append(names, string(match[1]))
		}
	}
	if names == nil {
		return []string{"postgresql"}
	}
	return names
}
