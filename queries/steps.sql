-- name: LoadStep :one
-- LoadStep reads the result of a step, for the attempt in progress that holds the
-- token. There is no row when another one does, and no result when none is stored: one
-- that had expired when the attempt claimed its key is an earlier life's.
SELECT s.result
FROM /*tenant.*/idempotency_records AS r
LEFT JOIN /*tenant.*/idempotency_steps AS s
    ON s.org_id = r.org_id AND s.key = r.key AND s.request_hash = r.request_hash
   AND s.name = @name AND s.expires_at > r.created_at
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL;

-- name: SaveStep :one
-- SaveStep stores the result of a step under the token of the attempt in progress. The
-- lock makes a take-over wait for it, so that either the step is stored before, and
-- seen by the next attempt, or the token is found to be spent. It stores nothing, and
-- returns no row, when it is, or when the step is there already.
INSERT INTO /*tenant.*/idempotency_steps AS s (created_at, expires_at, token, org_id, key, request_hash, name, result)
SELECT r.created_at, r.expires_at, r.token, r.org_id, r.key, r.request_hash, @name, @result
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL
FOR SHARE
ON CONFLICT (org_id, key, request_hash, name) DO UPDATE
SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, token = EXCLUDED.token, result = EXCLUDED.result
WHERE s.expires_at <= EXCLUDED.created_at
RETURNING s.result;

-- name: LoadLockedStep :one
-- LoadLockedStep is LoadStep for an attempt that holds its key by the advisory lock of
-- a transaction, in another server process than the one that is asked. It tells whether
-- that process still holds the lock.
SELECT EXISTS (
           SELECT 1
           FROM pg_catalog.pg_locks AS l
           JOIN pg_catalog.pg_database AS d ON d.oid = l.database
           WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.pid = @pid::integer AND l.granted
             AND l.classid::bigint = ((@lock_key::bigint >> 32) & 4294967295)
             AND l.objid::bigint = (@lock_key::bigint & 4294967295) AND l.objsubid = 1
       )::boolean AS held,
       (
           SELECT s.result
           FROM /*tenant.*/idempotency_steps AS s
           WHERE s.org_id = @org_id AND s.key = @key AND s.request_hash = @request_hash
             AND s.name = @name AND s.expires_at > @claimed_at
       ) AS result;

-- name: SaveLockedStep :one
-- SaveLockedStep is SaveStep for such an attempt: no record is committed that could be
-- looked at, and the lock stands for it. The step expires when the record will.
INSERT INTO /*tenant.*/idempotency_steps AS s (created_at, expires_at, token, org_id, key, request_hash, name, result)
SELECT a.claimed_at, a.claimed_at + a.ttl, a.token, a.org_id, a.key, a.request_hash, a.name, a.result
FROM (
    SELECT @claimed_at::timestamptz AS claimed_at, @ttl::interval AS ttl, @token::uuid AS token, @org_id::uuid AS org_id,
           @key::text AS key, @request_hash::bytea AS request_hash, @name::text AS name, @result::bytea AS result
) AS a
WHERE EXISTS (
    SELECT 1
    FROM pg_catalog.pg_locks AS l
    JOIN pg_catalog.pg_database AS d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.pid = @pid::integer AND l.granted
      AND l.classid::bigint = ((@lock_key::bigint >> 32) & 4294967295)
      AND l.objid::bigint = (@lock_key::bigint & 4294967295) AND l.objsubid = 1
)
ON CONFLICT (org_id, key, request_hash, name) DO UPDATE
SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, token = EXCLUDED.token, result = EXCLUDED.result
WHERE s.expires_at <= EXCLUDED.created_at
RETURNING s.result;
