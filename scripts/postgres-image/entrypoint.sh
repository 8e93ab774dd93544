#!/bin/sh
# Starts PostgreSQL in a container by the rules of the official image, as far as
# tests need them: POSTGRES_PASSWORD is required, POSTGRES_USER, POSTGRES_DB and
# POSTGRES_INITDB_ARGS are heeded, the command is "postgres" and its options. As
# there, a first server without a network prepares the database, so that "ready
# to accept connections" is logged twice.
set -eu

case ${1:--} in
-) set -- postgres ;;
-*) set -- postgres "$@" ;;
esac
if [ "$1" != postgres ]; then
	exec "$@"
fi

if [ "$(id -u)" = 0 ]; then
	mkdir -p "$PGDATA" /run/postgresql
	chown postgres:postgres "$PGDATA" /run/postgresql
	chmod 700 "$PGDATA"
	exec setpriv --reuid=postgres --regid=postgres --clear-groups -- "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
	user=${POSTGRES_USER:-postgres}
	database=${POSTGRES_DB:-$user}
	password=/tmp/password
	(umask 077 && printf '%s\n' "${POSTGRES_PASSWORD:?has to be set}" >"$password")
	# The arguments are meant to be split.
	# shellcheck disable=SC2086
	initdb --no-sync --pgdata="$PGDATA" --username="$user" --pwfile="$password" \
		--auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS-}
	rm "$password"
	echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
	echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"

	"$@" -c listen_addresses= &
	first=$!
	until pg_isready --quiet --username="$user" --dbname=postgres; do
		kill -0 "$first" 2>/dev/null || exit 1
		sleep 0.1
	done
	if [ "$database" != postgres ]; then
		createdb --username="$user" --maintenance-db=postgres "$database"
	fi
	kill -INT "$first"
	wait "$first"
fi
unset POSTGRES_PASSWORD
exec "$@"
