-- name: TenantSchemas :many
-- TenantSchemas lists the schemas that hold a table of records, by name. Another
-- application's table that happens to have the name lacks the column.
SELECT n.nspname::text AS schema
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'lease_until' AND NOT a.attisdropped
WHERE c.relname = 'idempotency_records' AND c.relkind = 'r'
ORDER BY n.nspname;

-- name: RequestSchemas :many
-- RequestSchemas lists the schemas that hold a table of kept requests in which there is
-- something, or was since it was last vacuumed, by name; where Citus is, whose rows are in
-- other files, all of them.
SELECT n.nspname::text AS schema
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'next_at' AND NOT a.attisdropped
WHERE c.relname = 'idempotency_requests' AND c.relkind = 'r'
  AND (pg_relation_size(c.oid::regclass) > 0 OR EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus'))
ORDER BY n.nspname;

-- name: DatabaseTime :one
-- DatabaseTime returns the time by the database's clock.
SELECT now()::timestamptz AS now;

-- name: Notify :exec
-- Notify tells those who listen on the channel.
SELECT pg_notify(@channel::text, @payload::text);

-- name: EnterTenant :one
-- EnterTenant sets search_path for the transaction alone, and tries to take the lock of a
-- key, which the transaction holds to its end. It tells when the transaction began, and
-- in which server process.
SELECT set_config('search_path', @search_path::text, true)::text AS search_path,
       pg_try_advisory_xact_lock(@key_lock::bigint)::boolean AS locked,
       now()::timestamptz AS began, pg_backend_pid()::integer AS pid;

-- name: AwaitLock :exec
-- AwaitLock waits for the lock of a key, and so for the end of the transaction that
-- holds it.
SELECT pg_advisory_xact_lock(@lock_key::bigint);

-- name: JoinCommits :exec
-- JoinCommits gives the transaction an ID, so that its commit waits for all that commits
-- before it wait for: a standby that confirms them, say.
SELECT pg_current_xact_id()::text AS xid;

-- name: TableSizes :many
-- TableSizes returns how much room the tables of a schema take on the disk, with their
-- indexes and what is stored out of line.
SELECT c.relname::text AS name, pg_total_relation_size(c.oid::regclass)::bigint AS bytes
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = @schema::text AND c.relkind = 'r'
  AND c.relname IN ('idempotency_records', 'idempotency_steps', 'idempotency_requests')
ORDER BY c.relname;
