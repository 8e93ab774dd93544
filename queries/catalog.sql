-- name: TenantSchemas :many
-- TenantSchemas lists the schemas that hold a table of records, by name.
SELECT n.nspname::text AS schema
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = 'idempotency_records' AND c.relkind IN ('r', 'p')
ORDER BY n.nspname;
