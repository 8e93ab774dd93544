-- name: ClaimInsert :execrows
-- ClaimInsert claims a key that has no record. It affects no row, and writes
-- nothing, where there is one.
INSERT INTO /*tenant.*/idempotency_records AS r (
    created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash
) VALUES (
    now(), now() + @ttl::interval, now() + @lease::interval, @token, @org_id, 1, true, @key, @request_hash
)
ON CONFLICT (org_id, key) DO NOTHING;

-- name: ClaimInsertMany :many
-- ClaimInsertMany is ClaimInsert for many keys of a tenant. It returns the keys and tokens of
-- those that it has claimed, and locks in the order in which the keys are given.
INSERT INTO /*tenant.*/idempotency_records AS r (
    created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash
)
SELECT now(), now() + @ttl::interval, now() + @lease::interval, unnest(@tokens::uuid[]), @org_id::uuid, 1, true,
       unnest(@keys::text[]), unnest(@request_hashes::bytea[])
ON CONFLICT (org_id, key) DO NOTHING
RETURNING r.key, r.token;

-- name: ClaimSelect :one
-- ClaimSelect reads the record of a key with what the database's clock says of it.
SELECT r.token, r.attempt, r.awaited, r.request_hash, r.created_at, r.expires_at,
       r.response_status, r.response_kept, r.response_headers, r.response_body,
       (r.completed_at IS NOT NULL)::boolean AS completed,
       (r.expires_at <= now())::boolean AS expired,
       (r.lease_until <= now())::boolean AS lapsed
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key;

-- name: ClaimSelectMany :many
-- ClaimSelectMany is ClaimSelect for many keys of a tenant. OFFSET 0 has each key looked up
-- by itself, by all of the primary key: with another plan, made and kept while the table was
-- small, all of it or all of its index would be read when it has grown.
SELECT r.key,
       r.token, r.attempt, r.awaited, r.request_hash, r.created_at, r.expires_at,
       r.response_status, r.response_kept, r.response_headers, r.response_body,
       (r.completed_at IS NOT NULL)::boolean AS completed,
       (r.expires_at <= now())::boolean AS expired,
       (r.lease_until <= now())::boolean AS lapsed
FROM (SELECT unnest(@keys::text[]) AS key) AS k
CROSS JOIN LATERAL (
    SELECT l.*
    FROM /*tenant.*/idempotency_records AS l
    WHERE l.org_id = @org_id AND l.key = k.key
    OFFSET 0
) AS r;

-- name: ClaimTakeOver :one
-- ClaimTakeOver claims a record that has expired or whose lease has lapsed, if it
-- is still as it was seen: the token is compared, and so are the deadlines, which
-- an extension or a completion may have changed under the same token. Steps that have
-- not expired move on with it.
WITH taken AS (
    UPDATE /*tenant.*/idempotency_records AS r
    SET created_at = now(), expires_at = now() + @ttl::interval, lease_until = now() + @lease::interval,
        completed_at = NULL, token = @token, attempt = @attempt, awaited = (r.awaited AND r.completed_at IS NULL),
        response_status = NULL, response_kept = true, request_hash = @request_hash,
        response_headers = NULL, response_body = NULL
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @seen_token
      AND ((r.completed_at IS NULL AND r.lease_until <= now()) OR (r.completed_at IS NOT NULL AND r.expires_at <= now()))
    RETURNING r.org_id, r.key, r.request_hash, r.created_at, r.expires_at
), moved AS (
    UPDATE /*tenant.*/idempotency_steps AS s
    SET expires_at = t.expires_at
    FROM taken AS t
    WHERE s.org_id = t.org_id AND s.key = t.key AND s.request_hash = t.request_hash AND s.expires_at > t.created_at
)
SELECT count(*) FROM taken AS t;

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

-- name: CompleteMany :many
-- CompleteMany is Complete for many keys of a tenant. It returns the keys and tokens of those
-- that it has completed, and locks in the order in which the keys are given. A row that changed
-- at this moment may be left out though its token holds: by Complete it is found out.
--
-- Each row is looked up by itself, by all of the primary key, for OFFSET 0; and updated by
-- its ctid. Where tables are not read whole there is no other plan, whatever statistics
-- say: IS TRUE makes of the rest no condition of an index or a join. It is there because a
-- row that another has changed meanwhile is looked at again.
UPDATE /*tenant.*/idempotency_records AS r
SET completed_at = now(), response_status = f.response_status, response_kept = f.response_kept,
    response_headers = f.response_headers, response_body = f.response_body
FROM (
    SELECT c.token, c.key, c.response_status, c.response_kept, c.response_headers, c.response_body, p.place
    FROM (
        SELECT unnest(@tokens::uuid[]) AS token, unnest(@keys::text[]) AS key,
               unnest(@response_statuses::integer[]) AS response_status, unnest(@response_kepts::boolean[]) AS response_kept,
               unnest(@response_headers::bytea[]) AS response_headers, unnest(@response_bodies::bytea[]) AS response_body
    ) AS c
    CROSS JOIN LATERAL (
        SELECT l.ctid::tid AS place
        FROM /*tenant.*/idempotency_records AS l
        WHERE l.org_id = @org_id AND l.key = c.key AND l.token = c.token
        OFFSET 0
    ) AS p
) AS f
WHERE r.ctid = f.place AND (r.org_id = @org_id AND r.key = f.key AND r.token = f.token) IS TRUE
RETURNING r.key, r.token, r.awaited;

-- name: Release :one
-- Release removes the record of a first attempt that ends without an outcome and
-- without steps.
DELETE FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL AND r.attempt = 1
  AND NOT EXISTS (
      SELECT 1
      FROM /*tenant.*/idempotency_steps AS s
      WHERE s.org_id = r.org_id AND s.key = r.key AND s.request_hash = r.request_hash AND s.expires_at > r.created_at
  )
RETURNING r.awaited;

-- name: ReleaseKept :one
-- ReleaseKept ends the lease of any other attempt that ends without an outcome, and
-- takes its token away. The record stays, so that attempts are counted on and the next
-- one finds the steps.
UPDATE /*tenant.*/idempotency_records AS r
SET lease_until = now(), token = @spent_token
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL
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
-- PutRecord writes a completed record whole, whatever was there. The steps of what was
-- there end with it, and so does the request that is kept.
WITH gone AS (
    DELETE FROM /*tenant.*/idempotency_steps AS s
    WHERE s.org_id = @org_id AND s.key = @key
), forgotten AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    WHERE q.org_id = @org_id AND q.key = @key
)
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
-- ClearRecords deletes all records of a tenant, their steps, and the requests that are
-- kept.
WITH gone AS (
    DELETE FROM /*tenant.*/idempotency_steps AS s
    WHERE s.org_id = @org_id
), forgotten AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    WHERE q.org_id = @org_id
)
DELETE FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id;

-- name: DeleteSeen :execrows
-- DeleteSeen makes room for the record of a transaction: it deletes one that has
-- expired or whose lease has lapsed, if it is still as it was seen.
DELETE FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @seen_token
  AND ((r.completed_at IS NULL AND r.lease_until <= now()) OR (r.completed_at IS NOT NULL AND r.expires_at <= now()));

-- name: InsertCompleted :exec
-- InsertCompleted writes a completed record at the end of its transaction, in which
-- now() is the time of the claim. It fails where there is a record.
INSERT INTO /*tenant.*/idempotency_records AS r (
    created_at, expires_at, lease_until, completed_at, token, org_id, attempt,
    response_status, response_kept, key, request_hash, response_headers, response_body
) VALUES (
    now(), now() + @ttl::interval, now(), clock_timestamp(), @token, @org_id, @attempt,
    @response_status::integer, @response_kept, @key, @request_hash, @response_headers, @response_body
);

-- name: CompletedBy :one
-- CompletedBy tells whether a record was completed by the attempt with the token.
SELECT (r.completed_at IS NOT NULL AND r.token = @token)::boolean AS completed
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key;

-- name: BeginTogether :exec
-- BeginTogether sets, for the transaction alone, how long each of its statements may take,
-- so that it ends before those who wait for it give it up; and that none is planned for
-- reading a table whole, which looks cheap while that is small. To look each key up takes a
-- nested loop, and to complete what was found a scan by ctid, so they are on, should the role
-- of the service have them off.
SELECT set_config('statement_timeout', @bound::text, true), set_config('enable_seqscan', 'off', true),
       set_config('enable_nestloop', 'on', true), set_config('enable_tidscan', 'on', true);

-- name: RelaxCommit :exec
-- RelaxCommit has the transaction's commit not wait for the disk.
SELECT set_config('synchronous_commit', 'off', true);
