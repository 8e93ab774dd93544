-- name: PurgeBatch :one
-- PurgeBatch deletes at most batch_rows absent records among the table's pages
-- from first_page up to, not including, end_page, and tells whether any record
-- lies beyond. The rows are found, locked and checked in one statement: a row
-- that a claim has just taken over is locked, and skipped, or no longer absent.
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
    RETURNING 1
)
SELECT (SELECT count(*) FROM deleted) AS deleted,
       EXISTS (SELECT FROM /*tenant.*/idempotency_records AS b WHERE b.ctid >= format('(%s,0)', @end_page::bigint)::tid) AS more;

-- name: CountExpired :one
-- CountExpired counts the records that a purge would delete.
SELECT count(*)
FROM /*tenant.*/idempotency_records AS r
WHERE r.expires_at <= now() AND (r.completed_at IS NOT NULL OR r.lease_until <= now());
