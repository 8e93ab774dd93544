# shellcheck shell=bash
# To be sourced: installing packages on Debian and its descendants as root,
# without any of the services that the packages bring being started.

can_install() {
	[ "$(id -u)" = 0 ] && command -v apt-get dpkg flock >/dev/null
}

# install_packages NAME... installs what is not installed yet and upgrades
# nothing, since an upgrade would restart services.
install_packages() {
	say "installing $*"
	locked_install "$@"
}

# install_postgresql installs the distribution's server without the cluster that
# its package makes and starts by default.
install_postgresql() {
	say "installing postgresql (no cluster of the system's is made)"
	locked_install postgresql-common
	locked_install --no-cluster postgresql
}

# locked_install runs in a subshell, so that its trap undoes, however it ends,
# the files which it writes. The lock is the one that internal/pgtest takes for the
# same purpose.
locked_install() (
	mkdir -p "$(readlink -m /var/lock)" # a link into /run, which may be empty in a container
	exec 9>>/var/lock/pgtest-install.lock
	flock 9
	undo=()
	trap 'if [ ${#undo[@]} -gt 0 ]; then rm -fd "${undo[@]}"; fi' EXIT
	trap 'exit 130' INT TERM HUP

	if [ "$1" = --no-cluster ]; then
		shift
		local conf=/etc/postgresql-common/createcluster.d/zz-pgtest.conf answer
		undo+=("$conf")
		if mkdir "${conf%/*}" 2>/dev/null; then
			undo+=("${conf%/*}")
		fi
		printf '%s\n' '# Written during an installation for tests. It can be removed.' \
			'create_main_cluster = false' >"$conf"
		answer=$(pg_conftool /etc/postgresql-common/createcluster.conf show -bs create_main_cluster)
		case $answer in
		false | off | no | 0) ;;
		*) die "createcluster.conf does not heed $conf, so that the package would make a cluster of the system's: $answer" ;;
		esac
	fi
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		undo+=("$policy")
		printf '%s\n' '#!/bin/sh' '# Written during an installation for tests. It can be removed.' \
			'exit 101 # no service is started' >"$policy"
		chmod 755 "$policy"
	fi

	# The lists on the machine may be old or absent. What the installation says is
	# what counts, so that a source which is down does no harm.
	local log
	log=$(mktemp)
	undo+=("$log")
	apt_get install "$@" >"$log" 2>&1 ||
		{ apt_get update && apt_get install "$@"; } >>"$log" 2>&1 ||
		{
			tail -n 15 "$log" >&2
			die "apt-get install $* did not work"
		}
)

apt_get() {
	local command=$1
	shift
	local options=(-o DPkg::Lock::Timeout=300 -qq)
	if [ "$command" = install ]; then
		options+=(-y --no-install-recommends --no-upgrade)
	fi
	DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get "${options[@]}" "$command" "$@" 9>&- </dev/null
}
