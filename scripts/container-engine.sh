#!/usr/bin/env bash
# Gives tests a container engine and a PostgreSQL image on machines that have
# neither, such as a new Debian without access to a registry.
#
#   container-engine.sh [--state FOLDER] start
#       Makes sure that an engine is usable. Where `docker info` works, nothing
#       is done. Else, on Debian and its descendants as root, an engine is
#       installed if need be and started in FOLDER, and the lines to evaluate in
#       a shell are printed: eval "$(scripts/container-engine.sh start)"
#   container-engine.sh [--state FOLDER] image NAME
#       Makes an image called NAME of the PostgreSQL that the machine has, which
#       is installed if need be. It obeys what the official image does.
#   container-engine.sh [--state FOLDER] stop
#       Ends the engine that start started in FOLDER, its containers with it, and
#       removes FOLDER. Does nothing where there is none.
#
# FOLDER defaults to pgidem-engine in ${TMPDIR:-/tmp}. Packages stay installed.
#
# The engine never meets one of the system's: its data, socket and bridge are its
# own, it has a mount namespace in which the folders that such daemons share are
# hidden, and it sets no firewall rules and no forwarding; published ports go
# through docker-proxy.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { echo "container-engine: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# shellcheck source=scripts/debian.sh
. "$here/debian.sh"

# What daemons of the system would share with ours, beside the paths that can be
# set.
shared=(/etc/docker /opt/containerd /run/containerd /run/docker)

engine_works() { timeout 20 docker info >/dev/null 2>&1; }

engine_of_state_runs() {
	local pid
	pid=$(cat "$state/pid" 2>/dev/null) && is_ours "$pid"
}

# is_ours guards against a pid that was given to another process since.
is_ours() {
	tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | grep -qxF -e "--data-root=$state/data"
}

start() {
	if [ -e "$state" ]; then
		check_state
		if engine_of_state_runs; then
			say "runs in $state"
			cat "$state/env"
			return
		fi
		say "removing what an engine left that ended by itself"
		stop
	fi
	if engine_works; then
		say "docker info works, nothing to do"
		return
	fi
	can_install || die "docker info does not work. Start Docker, or run this as root on Debian or a descendant, where an engine can be installed and started"
	install_engine
	start_engine
	cat "$state/env"
}

install_engine() {
	local missing=()
	command -v dockerd >/dev/null || missing+=(docker.io)
	command -v ip >/dev/null || missing+=(iproute2)
	if [ ${#missing[@]} -gt 0 ]; then
		install_packages "${missing[@]}"
	fi
	command -v docker >/dev/null || install_packages docker-cli # a package of its own in newer releases
}

start_engine() {
	[ ${#state} -le 80 ] || die "$state is too long for a socket's path"
	mkdir -m 700 "$state"
	trap 'say "giving up"; stop' EXIT
	trap 'exit 130' INT TERM HUP
	local id
	id=pgidem-$(od -An -N3 -tx1 /dev/urandom | tr -d ' \n')
	echo "$id" >"$state/id"
	ip link add name "$id" type bridge
	echo '{}' >"$state/daemon.json" # instead of /etc/docker/daemon.json
	mkdir "$state/hidden"

	local folder
	for folder in "${shared[@]}"; do
		if [ ! -d "$folder" ]; then
			mkdir "$folder"
			echo "$folder" >>"$state/made"
		fi
	done
	# The inner shell has its values as arguments.
	# shellcheck disable=SC2016
	setsid unshare --mount --propagation private sh -euc '
		hidden=$1; shift
		while [ "$1" != -- ]; do
			mkdir -p "$hidden$1"
			mount --bind "$hidden$1" "$1"
			shift
		done
		shift
		exec "$@"
	' sh "$state/hidden" "${shared[@]}" -- \
		dockerd --data-root="$state/data" --exec-root="$state/exec" --pidfile="$state/docker.pid" \
		--host="unix://$state/docker.sock" --config-file="$state/daemon.json" --group=root \
		--bridge="$id" --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
		--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent="$id" --shutdown-timeout=5 \
		</dev/null >"$state/log" 2>&1 &
	local pid=$!
	echo "$pid" >"$state/pid"
	# Host: the tests run on the machine itself, also where that is a container.
	printf 'export %s\n' "DOCKER_HOST=unix://$state/docker.sock" TESTCONTAINERS_HOST_OVERRIDE=localhost >"$state/env"

	local deadline=$((SECONDS + 60))
	until DOCKER_HOST=unix://$state/docker.sock engine_works; do
		if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
			tail -n 15 "$state/log" >&2
			die "dockerd does not come up"
		fi
		sleep 0.2
	done
	trap - EXIT INT TERM HUP
	say "dockerd runs in $state"
}

# check_state refuses a folder that somebody else may have put there.
check_state() {
	if [ ! -d "$state" ] || [ -L "$state" ] || [ ! -O "$state" ]; then
		die "$state is not a folder of this user's"
	elif [ ! -e "$state/id" ] && [ -n "$(ls -A "$state")" ]; then
		die "$state was not made by this script"
	fi
}

stop() {
	[ -e "$state" ] || return 0
	check_state
	local pid id='' folder
	if pid=$(cat "$state/pid" 2>/dev/null) && is_ours "$pid"; then
		kill -TERM "$pid"
		if ! gone_within 30 "$pid"; then
			say "dockerd does not end, killing it"
			kill -KILL "$pid"
			gone_within 10 "$pid" || die "dockerd ($pid) cannot be ended"
		fi
	fi
	if [ -s "$state/id" ]; then
		id=$(cat "$state/id")
		remove_orphans "$id"
		if ip link show dev "$id" >/dev/null 2>&1; then
			ip link delete dev "$id"
		fi
	fi
	if [ -e "$state/made" ]; then
		while read -r folder; do
			# Removing a folder takes away what others have mounted on it.
			grep -qsF " $folder " /proc/[0-9]*/mountinfo || rmdir "$folder" 2>/dev/null || true
		done <"$state/made"
	fi
	rm -rf "$state"
	say "the engine in $state is gone"
}

# remove_orphans ends what a dockerd that was killed left: its containerd, the
# shims, and the processes in the containers' groups, of which it then removes the
# folders.
remove_orphans() {
	local process group pid
	for process in /proc/[0-9]*; do
		pid=${process#/proc/}
		if tr '\0' '\n' 2>/dev/null <"$process/cmdline" | grep -qF -e "$state/exec/"; then
			kill -KILL "$pid" 2>/dev/null || true
			gone_within 10 "$pid" || true
		fi
	done
	for group in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
		[ -d "$group" ] || continue
		while read -r pid; do
			kill -KILL "$pid" 2>/dev/null || true
			gone_within 10 "$pid" || true
		done < <(find "$group" -name cgroup.procs -exec cat {} + 2>/dev/null)
		find "$group" -depth -type d -exec rmdir {} \; || true
	done
}

gone_within() {
	local deadline=$((SECONDS + $1))
	while kill -0 "$2" 2>/dev/null && ! is_zombie "$2"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.1
	done
}

# A dead child of a process that does not wait for it is as good as gone.
is_zombie() { grep -qs '^State:[[:space:]]*Z' "/proc/$1/status"; }

image() {
	local name=$1 bin tag
	if engine_of_state_runs; then
		# shellcheck disable=SC1091
		. "$state/env"
	fi
	engine_works || die "no container engine answers: run \"start\" first"
	if ! bin=$(server_folder); then
		can_install || die "PostgreSQL's server is not installed: its package is needed to make an image of it"
		install_postgresql
		bin=$(server_folder) || die "postgresql is installed, yet its programs are not where its packages put them"
	fi
	tag="$("$bin/postgres" -V) $(cksum <"$here/postgres-image/entrypoint.sh")"
	if [ "$(docker image inspect --format '{{index .Config.Labels "pgidem.made-of"}}' "$name" 2>/dev/null)" = "$tag" ]; then
		say "$name is there already"
		return
	fi
	stage=$(mktemp -d)
	trap 'rm -rf "$stage"' EXIT
	trap 'exit 130' INT TERM HUP
	fill "$stage" "$bin"
	tar -C "$stage" --owner=0 --group=0 -c . | docker import - "$name" >/dev/null
	DOCKER_BUILDKIT=0 docker build --quiet --tag "$name" - >/dev/null 2>&1 <<-END
		FROM $name
		ENV PATH=$bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
		VOLUME /var/lib/postgresql/data
		EXPOSE 5432
		STOPSIGNAL SIGINT
		ENTRYPOINT ["/usr/bin/entrypoint.sh"]
		CMD ["postgres"]
		LABEL pgidem.made-of="$tag"
	END
	say "$name is made of $("$bin/postgres" -V)"
}

# server_folder prints the newest packaged server's folder.
server_folder() {
	local folder
	folder=$(find /usr/lib/postgresql -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
	[ -n "$folder" ] && dirname "$folder"
}

# fill copies into a folder what a container needs to run the server: PostgreSQL,
# the programs of the entrypoint and of those who wait for the server, and
# the libraries of all of them.
fill() {
	local root=$1 server=${2%/bin} name folder
	for name in bin sbin lib lib32 lib64; do # links into /usr, where the distribution merged them
		if [ -L "/$name" ]; then
			cp -P "/$name" "$root/"
			mkdir -p "$root/$(readlink "/$name")"
		fi
	done
	mkdir -p "$root"/{dev,etc,proc,root,run/postgresql,sys,tmp,usr/bin,var/lib/postgresql/data}
	ln -s ../run "$root/var/run"
	chmod 755 "$root"
	chmod 1777 "$root/tmp"
	printf '%s\n' 'root:x:0:0::/root:/bin/sh' 'postgres:x:999:999::/var/lib/postgresql:/bin/sh' >"$root/etc/passwd"
	printf '%s\n' 'root:x:0:' 'postgres:x:999:' >"$root/etc/group"
	printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' >"$root/etc/nsswitch.conf"

	install -m 755 "$here/postgres-image/entrypoint.sh" "$root/usr/bin/"
	for folder in "$server" "${server/#\/usr\/lib/\/usr\/share}" /usr/share/zoneinfo /usr/lib/locale/C.utf8; do
		mkdir -p "$root${folder%/*}"
		cp -rL "$folder" "$root${folder%/*}/"
	done
	# Compiling queries is nothing for tests, and its library is the size of all
	# the rest.
	find "$root$server/lib" \( -name 'llvmjit*' -o -name bitcode -o -name pgxs \) -prune -exec rm -r {} +
	for name in awk bash cat chmod chown env grep id ls mkdir rm setpriv sh sleep; do
		if name=$(command -v "$name"); then
			cp -L "$name" "$root/usr/bin/"
		fi
	done
	{ find "$root/usr/bin" "$root$server" -type f \( -perm -u+x -o -name '*.so' \) -exec ldd {} + 2>/dev/null || true; } | # scripts have no libraries
		awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// && $2 ~ /^\(/ { print $1 }' | sort -u |
		while read -r name; do
			folder=$root$(realpath "$(dirname "$name")")
			mkdir -p "$folder"
			cp -L "$name" "$folder/"
		done
}

state=${TMPDIR:-/tmp}/pgidem-engine
if [ "${1-}" = --state ]; then
	state=${2:?the folder is missing}
	shift 2
fi
case $state in
/*) ;;
*) state=$PWD/$state ;;
esac
case ${1-}/$# in
start/1 | stop/1 | image/2) "$@" ;;
*)
	sed -n '/^#   /s/^#   //p' "${BASH_SOURCE[0]}" >&2
	exit 2
	;;
esac
