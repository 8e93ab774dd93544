#!/usr/bin/env bash
# Runs the tests of the module in integration/, which need a container engine, an
# image of PostgreSQL and PgBouncer. What the machine lacks is put in place first, as
# container-engine.sh describes, and an engine that was started is ended.
#
#   integration.sh [arguments for go test]
#
# PGIDEM_TEST_IMAGE names the image. Where it is not set, that is
# postgres:17-alpine or, if it is neither there nor to be had, an image made of
# the machine's own PostgreSQL.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
official=postgres:17-alpine
own=pgidem/postgres:local

say() { echo "integration: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# shellcheck source=scripts/debian.sh
. "$here/debian.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/pgidem-XXXXXX")
times=()

# part NAME COMMAND... runs a part and notes how long it took.
part() {
	local name=$1 begin=$SECONDS
	shift
	doing=$name
	"$@"
	doing=
	times+=("$name $((SECONDS - begin)) s")
}

end() {
	local code=$?
	trap - EXIT
	trap '' INT TERM HUP # the rest is brief and has to be done
	if [ -n "${doing-}" ]; then
		times+=("$doing: not done")
	fi
	if ! part end clean_up; then
		code=1
	fi
	local list
	printf -v list '%s, ' "${times[@]}"
	say "${list%, }"
	exit "$code"
}

clean_up() {
	local left
	# Whatever a test that panicked left in an engine that goes on.
	if left=$(docker ps --all --quiet --filter "label=pgidem.integration=$work" 2>/dev/null) && [ -n "$left" ]; then
		# shellcheck disable=SC2086
		docker rm --force --volumes $left >/dev/null
	fi
	"$here/container-engine.sh" --state "$work/engine" stop && rm -rf "$work"
}

need_compiler() {
	local cc
	cc=$(go env CC)
	command -v "${cc%% *}" >/dev/null && return
	can_install || die "the race detector needs a C compiler, and $cc is not installed"
	part compiler install_packages gcc libc6-dev
}

need_pgbouncer() {
	command -v pgbouncer >/dev/null && return
	[ -x /usr/sbin/pgbouncer ] && return
	can_install || die "pgbouncer is not installed"
	part pgbouncer install_packages pgbouncer
}

start_engine() {
	local lines
	lines=$("$here/container-engine.sh" --state "$work/engine" start)
	eval "$lines"
}

get_image() {
	if [ -n "${PGIDEM_TEST_IMAGE-}" ]; then
		have "$PGIDEM_TEST_IMAGE" || die "PGIDEM_TEST_IMAGE is set to $PGIDEM_TEST_IMAGE, which is neither here nor to be had"
	elif have "$official"; then
		PGIDEM_TEST_IMAGE=$official
	else
		"$here/container-engine.sh" --state "$work/engine" image "$own"
		PGIDEM_TEST_IMAGE=$own
	fi
	export PGIDEM_TEST_IMAGE
}

have() {
	local out
	docker image inspect "$1" >/dev/null 2>&1 && return
	if ! out=$(timeout 300 docker pull --quiet "$1" 2>&1); then
		say "$1 cannot be pulled: $(tail -n 1 <<<"$out")"
		return 1
	fi
}

run_tests() {
	cd "$here/../integration"
	# The reaper of testcontainers would be one more image to pull. clean_up does
	# what it would be there for.
	TESTCONTAINERS_RYUK_DISABLED=${TESTCONTAINERS_RYUK_DISABLED:-true} PGIDEM_INTEGRATION_RUN=$work \
		go test -race -count=1 "$@" ./...
}

trap end EXIT
trap 'exit 130' INT TERM HUP
need_compiler
need_pgbouncer
part engine start_engine
part image get_image
part tests run_tests "$@"
