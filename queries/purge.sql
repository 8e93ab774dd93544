-- name: FilledTables :one
-- FilledTables reports which of a tenant's tables may hold rows: whose files are not of 0
-- bytes, as they are until the first row comes. Where Citus is, the rows are in other files,
-- or on other servers; of a table that is not there it is as well to be asked.
SELECT (COALESCE(pg_relation_size(to_regclass(@records::text)) > 0, true) OR citus.present)::boolean AS records,
       (COALESCE(pg_relation_size(to_regclass(@steps::text)) > 0, true) OR citus.present)::boolean AS steps,
       (COALESCE(pg_relation_size(to_regclass(@requests::text)) > 0, true) OR citus.present)::boolean AS requests
FROM (SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') AS present) AS citus;

-- name: PurgeBatch :one
-- PurgeBatch deletes at most batch_rows absent records among the table's pages
-- from first_page up to, not including, end_page. It returns how many, and the
-- first page from end_page on that holds a record, or -1.
--
-- The rows are found, locked and checked in one statement: a row that a claim has
-- just taken over is locked, and skipped, or no longer absent. The DELETE checks
-- again, because a ctid names one row in one plain table only.
WITH deleted AS (
    DELETE FROM /*tenant.*/idempotency_records AS d
    WHERE d.ctid = ANY (ARRAY(
        SELECT r.ctid
        FROM /*tenant.*/idempotency_records AS r
        WHERE r.ctid >= format('(%s,0)', @first_page::bigint)::tid
          AND r.ctid < format('(%s,0)', @end_page::bigint)::tid
          AND r.expires_at <= now() AND (r.completed_at IS NOT NULL OR r.lease_until <= now())
        LIMIT @batch_rows
        FOR UPDATE SKIP LOCKED
    ))
      AND d.expires_at <= now() AND (d.completed_at IS NOT NULL OR d.lease_until <= now())
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted,
       COALESCE((
           SELECT ltrim(split_part(b.ctid::text, ',', 1), '(')::bigint
           FROM /*tenant.*/idempotency_records AS b
           WHERE b.ctid >= format('(%s,0)', @end_page::bigint)::tid
           LIMIT 1
       ), -1)::bigint AS next_page;

-- name: CountExpired :one
-- CountExpired counts the records that a purge would delete.
SELECT count(*)
FROM /*tenant.*/idempotency_records AS r
WHERE r.expires_at <= now() AND (r.completed_at IS NOT NULL OR r.lease_until <= now());

-- name: PurgeStepsBatch :one
-- PurgeStepsBatch is PurgeBatch for steps. It waits for an hour longer than the steps
-- live, so that a claim which takes a record over at its last moment has moved them on,
-- and leaves those of an attempt in progress that outlives its record's expiry.
WITH deleted AS (
    DELETE FROM /*tenant.*/idempotency_steps AS d
    WHERE d.ctid = ANY (ARRAY(
        SELECT s.ctid
        FROM /*tenant.*/idempotency_steps AS s
        WHERE s.ctid >= format('(%s,0)', @first_page::bigint)::tid
          AND s.ctid < format('(%s,0)', @end_page::bigint)::tid
          AND s.expires_at <= now() - interval '1 hour'
          AND NOT EXISTS (
              SELECT 1
              FROM /*tenant.*/idempotency_records AS r
              WHERE r.org_id = s.org_id AND r.key = s.key AND r.completed_at IS NULL AND r.lease_until > now()
          )
        LIMIT @batch_rows
        FOR UPDATE SKIP LOCKED
    ))
      AND d.expires_at <= now() - interval '1 hour'
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted,
       COALESCE((
           SELECT ltrim(split_part(b.ctid::text, ',', 1), '(')::bigint
           FROM /*tenant.*/idempotency_steps AS b
           WHERE b.ctid >= format('(%s,0)', @end_page::bigint)::tid
           LIMIT 1
       ), -1)::bigint AS next_page;

-- name: PurgeRequestsBatch :one
-- PurgeRequestsBatch is PurgeBatch for requests that are kept: an hour after they have
-- expired, as for steps, and an hour after they were kept where nothing is in progress
-- that they could be of. The hour spares what a claim keeps anew at that moment.
WITH deleted AS (
    DELETE FROM /*tenant.*/idempotency_requests AS d
    WHERE d.ctid = ANY (ARRAY(
        SELECT q.ctid
        FROM /*tenant.*/idempotency_requests AS q
        LEFT JOIN /*tenant.*/idempotency_records AS r ON r.org_id = q.org_id AND r.key = q.key
        WHERE q.ctid >= format('(%s,0)', @first_page::bigint)::tid
          AND q.ctid < format('(%s,0)', @end_page::bigint)::tid
          AND (
              (q.expires_at <= now() - interval '1 hour' AND (r.key IS NULL OR r.completed_at IS NOT NULL OR r.lease_until <= now()))
              OR (q.created_at <= now() - interval '1 hour' AND (
                  (r.completed_at IS NOT NULL AND r.expires_at > now())
                  OR (q.lock_key IS NULL AND (r.key IS NULL OR r.completed_at IS NOT NULL OR r.request_hash <> q.request_hash))
              ))
          )
        LIMIT @batch_rows
        FOR UPDATE OF q SKIP LOCKED
    ))
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted,
       COALESCE((
           SELECT ltrim(split_part(b.ctid::text, ',', 1), '(')::bigint
           FROM /*tenant.*/idempotency_requests AS b
           WHERE b.ctid >= format('(%s,0)', @end_page::bigint)::tid
           LIMIT 1
       ), -1)::bigint AS next_page;
