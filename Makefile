# Every target says what it does: `make help`.

GO        ?= go
ARGS      ?=
COUNT     ?= 6
BENCHTIME ?= 1s
FUZZTIME  ?= 1m
KILLS     ?= 500
TENANTS   ?= 1000
# Tests that build the standard library anew, which takes longer than all others in chaos.
SLOWCLOCKS := TestWrongClocks|TestClocksHoursApart
BIN       := $(CURDIR)/.bin
# Modules of their own beside the library's, so that nothing they need is needed by it.
ADAPTERS  := adapters/gin adapters/echo adapters/echov4
MODULES   := integration bench $(ADAPTERS) routers chaos
GOOSETAGS := no_ydb no_clickhouse no_mssql no_mysql no_sqlite3 no_vertica no_libsql no_duckdb

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Show the main job on a throw-away PostgreSQL (ARGS=--serve leaves it running)
	@$(GO) run ./examples/payments $(ARGS)

.PHONY: test
test: ## Run the tests on a real PostgreSQL
	$(GO) test ./...

.PHONY: test-race
test-race: ## Run the tests under the race detector
	$(GO) test -race ./...

.PHONY: integration
integration: ## Run the store's suites in containers and through PgBouncer (needs both, or root on Debian)
	scripts/integration.sh

.PHONY: test-bench
test-bench: ## Run the tests of the benchmarks' programs
	cd bench && $(GO) test -race ./...

.PHONY: routers
routers: ## Run the end-to-end test of the middleware in each router
	@set -e; for m in $(ADAPTERS) routers; do (cd $$m && $(GO) test -race ./...); done

.PHONY: chaos
chaos: ## Kill services (KILLS times in each mode, default 500) and databases under load, break networks, set clocks wrong
	cd chaos && PGIDEM_CHAOS_KILLS=$(KILLS) PGIDEM_CHAOS_POSTGRES_KILLS=20 PGIDEM_CHAOS_STOPS=60 PGIDEM_CHAOS_NETWORK=24 \
		PGIDEM_CHAOS_COMPLETER_KILLS=200 PGIDEM_CHAOS_CLOCK_KILLS=100 $(GO) test -v -p=1 -count=1 -timeout=90m ./...

.PHONY: chaos-short
chaos-short: ## The same with a few faults of each kind, in a minute, without wrong clocks
	cd chaos && $(GO) test -short -skip='^($(SLOWCLOCKS))$$' -count=1 -parallel=6 ./...

.PHONY: cover
cover: ## Show the statement coverage of each package by its own tests
	$(GO) test -cover ./...

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (default 1m)
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
		for target in $$(grep -rhoE '^func Fuzz\w+' $$dir/*_test.go | cut -c6- | sort); do \
			echo "$$dir $$target"; $(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=10x $$dir; \
		done; \
	done

.PHONY: bench
bench: $(BIN)/benchstat ## Compare with a bare handler and with peers, as ratios within one run (COUNT=6 rounds of BENCHTIME=1s; 6 minutes)
	cd bench && $(GO) test -c -o $(BIN)/bench.test . && $(GO) build -o $(BIN)/ratios ./ratios
	@: > $(BIN)/bench.txt
	@for round in $$(seq $(COUNT)); do echo "round $$round of $(COUNT)"; (cd bench && \
		$(BIN)/bench.test -test.run='^$$' -test.bench=. -test.benchtime=$(BENCHTIME) -test.timeout=30m >> $(BIN)/bench.txt) || \
		{ cat $(BIN)/bench.txt; exit 1; }; done
	@$(BIN)/benchstat -filter .unit:sec/op -row /work,/server -col /impl $(BIN)/bench.txt
	@echo && $(BIN)/ratios $(BIN)/bench.txt

.PHONY: bench-migrations
bench-migrations: ## Measure how long TENANTS (default 1000) take to be made, migrated, compared and purged, and what memory and catalogs they need
	PGIDEM_SCALE_TENANTS=$(TENANTS) $(GO) test -run='^TestScale$$' -v -count=1 -timeout=60m ./migrations

.PHONY: kill-tenants
kill-tenants: ## Kill migrations of many tenants, and moves of one, KILLS times (default 500) each, and run them again
	PGIDEM_MIGRATION_KILLS=$(KILLS) $(GO) test -run='^TestKilledRuns$$' -v -count=1 -timeout=60m ./migrations
	PGIDEM_MOVE_KILLS=$(KILLS) PGIDEM_MOVES=30 $(GO) test -run='^(TestMoveKilled|TestMoveUnderLoad)$$' -v -count=1 -timeout=60m ./tenancy/move

.PHONY: pgload
pgload: ## Compare over HTTP with pgbench's least work (ARGS='-work first,replay'; needs pgbench)
	cd bench && $(GO) run ./pgload $(ARGS)

.PHONY: bench-tenants
bench-tenants: ## Measure the store over 1 to 10,000 tenants beside one shared table (ARGS='-tenants 1000'; a quarter of an hour)
	cd bench && $(GO) run ./pgtenants $(ARGS)

.PHONY: generate
generate: $(BIN)/sqlc ## Generate internal/db from queries and migrations
	$(BIN)/sqlc generate

.PHONY: verify
verify: $(BIN)/sqlc $(BIN)/goose ## Check that generated code, migrations, go.mod and format are current
	$(BIN)/sqlc diff
	$(BIN)/goose -dir migrations/tenant validate
	$(BIN)/goose -dir migrations/control validate
	@ugly=$$(gofmt -l .) && test -z "$$ugly" || { echo "not gofmt-ed: $$ugly"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) mod verify
	$(GO) vet ./...
	@deps=$$($(GO) list -deps ./idempotency) && ! echo "$$deps" | grep -E 'jackc/pgx|pressly/goose|^database/sql$$' || { echo "idempotency must not depend on a database"; exit 1; }
	@for m in $(MODULES); do echo "$$m: tidy, vet"; (cd $$m && $(GO) mod tidy -diff && $(GO) vet ./...) || exit 1; done

.PHONY: lint
lint: $(BIN)/golangci-lint ## Lint, import directions included
	$(BIN)/golangci-lint run ./...
	@for m in $(MODULES); do echo "$$m: lint"; (cd $$m && $(BIN)/golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; done

.PHONY: readme
readme: tools ## Run the commands of the README on a throw-away PostgreSQL
	$(GO) run ./internal/pgtest/pgrun scripts/readme.sh

.PHONY: ci
ci: verify lint test test-race test-bench routers chaos-short demo readme ## All that must pass before a change lands

.PHONY: tools
tools: $(BIN)/sqlc $(BIN)/goose $(BIN)/golangci-lint $(BIN)/benchstat ## Build the pinned tools into .bin

# Each tool is pinned in a module of its own under tools/.
$(BIN)/sqlc: tools/sqlc/go.mod tools/sqlc/go.sum
	CGO_ENABLED=0 $(GO) build -C tools/sqlc -o $@ github.com/sqlc-dev/sqlc/cmd/sqlc

$(BIN)/goose: tools/goose/go.mod tools/goose/go.sum
	$(GO) build -C tools/goose -tags='$(GOOSETAGS)' -o $@ github.com/pressly/goose/v3/cmd/goose

$(BIN)/golangci-lint: tools/golangci-lint/go.mod tools/golangci-lint/go.sum
	$(GO) build -C tools/golangci-lint -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(BIN)/benchstat: tools/benchstat/go.mod tools/benchstat/go.sum
	$(GO) build -C tools/benchstat -o $@ golang.org/x/perf/cmd/benchstat

.PHONY: clean
clean: ## Remove what make built
	rm -rf $(BIN)
