-- name: ClaimInsert :execrows
-- ClaimInsert claims a key that has no record. It affects no row, and writes
-- nothing, where there is one.
INSERT INTO /*tenant.*/idempotency_records AS r (
    created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash
) VALUES (
    now(), now() + @ttl::interval, now() + @lease::interval, @token, @org_id, 1, true, @key, @request_hash
)
ON CONFLICT (org_id, key) DO NOTHING;

-- name: ClaimSelect :one
-- ClaimSelect reads the record of a key with what the database's clock says of it.
SELECT r.token, r.attempt, r.awaited, r.request_hash, r.created_at, r.expires_at,
       r.response_status, r.response_kept, r.response_headers, r.response_body,
       (r.completed_at IS NOT NULL)::boolean AS completed,
       (r.expires_at <= now())::boolean AS expired,
       (r.lease_until <= now())::boolean AS lapsed
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key;

-- name: ClaimTakeOver :execrows
-- ClaimTakeOver claims a record that has expired or whose lease has lapsed, if it
-- is still as it was seen: the token is compared, and so are the deadlines, which
-- an extension or a completion may have changed under the same token.
UPDATE /*tenant.*/idempotency_records AS r
SET created_at = now(), expires_at = now() + @ttl::interval, lease_until = now() + @lease::interval,
    completed_at = NULL, token = @token, attempt = @attempt, awaited = (r.awaited AND r.completed_at IS NULL),
    response_status = NULL, response_kept = true, request_hash = @request_hash,
    response_headers = NULL, response_body = NULL
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @seen_token
  AND ((r.completed_at IS NULL AND r.lease_until <= now()) OR (r.completed_at IS NOT NULL AND r.expires_at <= now()));

-- name: MarkAwaited :execrows
-- MarkAwaited asks the attempt in progress to notify at its end. Of many who wait, one
-- writes.
UPDATE /*tenant.*/idempotency_records AS r
SET awaited = true
WHERE r.org_id = @org_id AND r.key = @key AND r.completed_at IS NULL AND NOT r.awaited;

-- name: Complete :one
-- Complete stores the outcome of the attempt that holds the token, and tells whether
-- somebody waits for it. It may be repeated: its first run may have taken effect
-- without its answer arriving.
UPDATE /*tenant.*/idempotency_records AS r
SET completed_at = now(), response_status = @response_status::integer, response_kept = @response_kept,
    response_headers = @response_headers, response_body = @response_body
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token
RETURNING r.awaited;

-- name: Release :one
-- Release removes the record of a first attempt that ends without an outcome.
DELETE FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL AND r.attempt = 1
RETURNING r.awaited;

-- name: ReleaseTakenOver :one
-- ReleaseTakenOver ends the lease of a later attempt that ends without an outcome,
-- and takes its token away. The record stays, so that attempts are counted on.
UPDATE /*tenant.*/idempotency_records AS r
SET lease_until = now(), token = @spent_token
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL AND r.attempt > 1
RETURNING r.awaited;

-- name: Extend :execrows
-- Extend moves the lease of a running attempt on, counted from now.
UPDATE /*tenant.*/idempotency_records AS r
SET lease_until = now() + @lease::interval
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL;

-- name: GetRecord :one
-- GetRecord reads a completed record that has not expired.
SELECT r.request_hash, r.created_at, r.expires_at,
       r.response_status, r.response_kept, r.response_headers, r.response_body
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key AND r.completed_at IS NOT NULL AND r.expires_at > now();

-- name: PutRecord :exec
-- PutRecord writes a completed record whole, whatever was there.
INSERT INTO /*tenant.*/idempotency_records AS r (
    created_at, expires_at, lease_until, completed_at, token, org_id, attempt,
    response_status, response_kept, key, request_hash, response_headers, response_body
) VALUES (
    @created_at, @expires_at, now(), now(), @token, @org_id, 1,
    @response_status::integer, @response_kept, @key, @request_hash, @response_headers, @response_body
)
ON CONFLICT (org_id, key) DO UPDATE
SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, lease_until = EXCLUDED.lease_until,
    completed_at = EXCLUDED.completed_at, token = EXCLUDED.token, attempt = EXCLUDED.attempt,
    response_status = EXCLUDED.response_status, response_kept = EXCLUDED.response_kept,
    request_hash = EXCLUDED.request_hash,
    response_headers = EXCLUDED.response_headers, response_body = EXCLUDED.response_body;

-- name: ClearRecords :execrows
-- ClearRecords deletes all records of a tenant.
DELETE FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id;
