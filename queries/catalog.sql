-- name: TenantSchemas :many
-- TenantSchemas lists the schemas that hold a table of records, by name. Another
-- application's table that happens to have the name lacks the column.
SELECT n.nspname::text AS schema
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'lease_until' AND NOT a.attisdropped
WHERE c.relname = 'idempotency_records' AND c.relkind = 'r'
ORDER BY n.nspname;

-- name: DatabaseTime :one
-- DatabaseTime returns the time by the database's clock.
SELECT now()::timestamptz AS now;

-- name: Notify :exec
-- Notify tells those who listen on the channel.
SELECT pg_notify(@channel::text, @payload::text);

-- name: BackendPID :one
-- BackendPID returns the process ID of the server process that serves the connection.
SELECT pg_backend_pid() AS pid;
