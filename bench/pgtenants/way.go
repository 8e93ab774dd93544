package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgidem/pgidem/idempotency/pgstore"
	"github.com/pgidem/pgidem/tenancy"
)

// way is how requests reach their tenant's table.
type way struct {
	shared       bool
	pools, conns int // conns of each pool
	cache        int // statements; 0 is pgx's default
	generic      bool
	exec         bool
	few          int
}

func parseWay(text string, conns int) (w way, err error) {
	parts := strings.Split(text, "/")
	kind, shape, _ := strings.Cut(parts[0], ":")
	w.pools, w.conns = 1, conns
	switch kind {
	case "shared":
		w.shared = true
	case "pool":
	case "pools":
		if _, err := fmt.Sscanf(shape, "%dx%d", &w.pools, &w.conns); err != nil {
			return w, fmt.Errorf("way %q: %w", text, err)
		}
	default:
		return w, fmt.Errorf("no way is called %q", text)
	}
	for _, option := range parts[1:] {
		name, value, _ := strings.Cut(option, "=")
		n, convErr := strconv.Atoi(value)
		switch {
		case name == "cache" && convErr == nil:
			w.cache = n
		case name == "few" && convErr == nil:
			w.few = n
		case option == "generic":
			w.generic = true
		case option == "exec":
			w.exec = true
		default:
			err = errors.Join(err, fmt.Errorf("way %q: no option %q", text, option))
		}
	}
	return w, err
}

const sharedSchema = "shared"

// open returns the store, and what closes it.
func (w way) open(ctx context.Context, url, name string) (*pgstore.Store, func(), error) {
	dir, err := tenancy.PerOrg("tenant_")
	if err != nil {
		return nil, nil, err
	}
	if w.shared {
		schema, err := tenancy.ParseSchema(sharedSchema)
		if err != nil {
			return nil, nil, err
		}
		dir = tenancy.Fixed(schema)
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, nil, err
	}
	cfg.MaxConns = int32(w.pools * w.conns)
	cfg.ConnConfig.RuntimeParams["application_name"] = name
	if w.cache > 0 {
		cfg.ConnConfig.StatementCacheCapacity = w.cache
	}
	if w.generic {
		cfg.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	}
	if w.exec {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	var opts []pgstore.Option
	if w.few > 0 {
		opts = append(opts, pgstore.WithCoalescing(w.few))
	}
	if w.pools == 1 {
		pool, err := pgxpool.NewWithConfig(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		store, err := pgstore.New(pool, dir, opts...)
		return store, pool.Close, err
	}
	pools, err := pgstore.NewPools(ctx, cfg, w.pools)
	if err != nil {
		return nil, nil, err
	}
	store, err := pgstore.NewRouted(pools, dir, opts...)
	return store, pools.Close, err
}
