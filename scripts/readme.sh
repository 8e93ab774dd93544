#!/usr/bin/env bash
# Runs the commands of README.md as they are written there, but for make demo and
# make test, which are targets of their own. DATABASE_URL must lead to an empty
# database; `make readme` sees to it.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DATABASE_URL:?run it by make readme}"

awk '/^```sh$/ {inside = 1; next} /^```$/ {inside = 0} inside' README.md |
	grep -vE '^make (demo|test)\b' | bash -eux
