-- name: InspectRecord :one
-- InspectRecord reads what is known of the record of a key, with what the database's clock
-- says of it, but neither headers nor body of its response.
SELECT r.created_at, r.expires_at, r.lease_until, r.completed_at, r.token, r.attempt, r.awaited,
       r.request_hash, r.response_status, r.response_kept,
       COALESCE(octet_length(r.response_headers), 0)::bigint AS header_bytes,
       COALESCE(octet_length(r.response_body), 0)::bigint AS body_bytes,
       pg_column_size(r.*)::bigint AS row_bytes,
       (r.completed_at IS NOT NULL)::boolean AS completed,
       (r.expires_at <= now())::boolean AS expired,
       (r.lease_until <= now())::boolean AS lapsed
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key;

-- name: InspectSteps :many
-- InspectSteps lists the steps of a key, whatever request they are of, without their
-- results.
SELECT s.name, s.request_hash, s.created_at, s.expires_at, octet_length(s.result)::bigint AS result_bytes
FROM /*tenant.*/idempotency_steps AS s
WHERE s.org_id = @org_id AND s.key = @key
ORDER BY s.created_at, s.name;

-- name: InspectRequest :one
-- InspectRequest reads what is known of the request that is kept of a key, but neither its
-- path, its headers nor its body.
SELECT q.created_at, q.expires_at, q.next_at, q.lock_key, q.attempts, q.gave_up, q.request_hash, q.method, q.pattern,
       octet_length(q.target)::bigint AS target_bytes,
       COALESCE(octet_length(q.headers), 0)::bigint AS header_bytes,
       COALESCE(octet_length(q.body), 0)::bigint AS body_bytes
FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.key = @key;

-- name: RevealRecord :one
-- RevealRecord reads the response that is stored of a key.
SELECT r.response_status, r.response_headers, r.response_body
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND r.key = @key;

-- name: RevealSteps :many
-- RevealSteps reads the results of the steps of a key.
SELECT s.name, s.request_hash, s.result
FROM /*tenant.*/idempotency_steps AS s
WHERE s.org_id = @org_id AND s.key = @key
ORDER BY s.created_at, s.name;

-- name: RevealRequest :one
-- RevealRequest reads the request that is kept of a key.
SELECT q.method, q.target, q.host, q.pattern, q.path_values, q.headers, q.body
FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.key = @key;

-- name: ScopedKeys :many
-- ScopedKeys lists the stored keys that have a scope in front of a client's key. It reads
-- all keys of the tenant.
SELECT r.key
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id AND substr(r.key, 33) = chr(31) || @key::text
UNION
SELECT s.key
FROM /*tenant.*/idempotency_steps AS s
WHERE s.org_id = @org_id AND substr(s.key, 33) = chr(31) || @key::text
UNION
SELECT q.key
FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND substr(q.key, 33) = chr(31) || @key::text
ORDER BY 1
LIMIT @most;

-- name: KeyLockHolder :one
-- KeyLockHolder tells which server process holds the lock of a key, and when its
-- transaction began: in the year 1 where the role may not know that.
SELECT l.pid::integer AS pid, COALESCE(a.xact_start, '0001-01-01 00:00:00+00')::timestamptz AS began
FROM pg_catalog.pg_locks AS l
JOIN pg_catalog.pg_database AS d ON d.oid = l.database
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.granted
  AND l.classid::bigint = ((@lock_key::bigint >> 32) & 4294967295)
  AND l.objid::bigint = (@lock_key::bigint & 4294967295) AND l.objsubid = 1
LIMIT 1;

-- name: CountRecords :one
-- CountRecords counts the records of a tenant by their state. It reads the whole table. The
-- oldest is of the year 1 where none is in progress.
SELECT count(*) FILTER (WHERE r.completed_at IS NULL AND r.lease_until > now()) AS in_progress,
       count(*) FILTER (WHERE r.completed_at IS NULL AND r.lease_until <= now() AND r.expires_at > now()) AS interrupted,
       count(*) FILTER (WHERE r.completed_at IS NOT NULL AND r.response_kept AND r.expires_at > now()) AS completed,
       count(*) FILTER (WHERE r.completed_at IS NOT NULL AND NOT r.response_kept AND r.expires_at > now()) AS not_kept,
       count(*) FILTER (WHERE r.expires_at <= now() AND (r.completed_at IS NOT NULL OR r.lease_until <= now())) AS expired,
       COALESCE(min(r.created_at) FILTER (WHERE r.completed_at IS NULL AND r.lease_until > now()), '0001-01-01 00:00:00+00')::timestamptz AS oldest_in_progress,
       now()::timestamptz AS now
FROM /*tenant.*/idempotency_records AS r
WHERE r.org_id = @org_id;

-- name: CountSteps :one
-- CountSteps counts the steps of a tenant that have not expired.
SELECT count(*)
FROM /*tenant.*/idempotency_steps AS s
WHERE s.org_id = @org_id AND s.expires_at > now();

-- name: CountRequests :one
-- CountRequests counts the requests that are kept of a tenant and have not expired, and
-- those of them that were given up.
SELECT count(*) AS kept, count(*) FILTER (WHERE q.gave_up) AS gave_up
FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.expires_at > now();

-- name: EndAttempt :one
-- EndAttempt ends the lease of an attempt in progress from outside, and takes its token
-- away. The record stays, so that attempts are counted on and the next one finds the steps.
UPDATE /*tenant.*/idempotency_records AS r
SET lease_until = now(), token = @spent_token
WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL
  AND (@live::boolean OR r.lease_until <= now())
RETURNING r.awaited;

-- name: ForgetInProgress :one
-- ForgetInProgress is EndAttempt that removes the record, and the request that is kept.
WITH released AS (
    DELETE FROM /*tenant.*/idempotency_records AS r
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL
      AND (@live::boolean OR r.lease_until <= now())
    RETURNING r.org_id, r.key, r.awaited
), gone AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    USING released AS c
    WHERE q.org_id = c.org_id AND q.key = c.key
)
SELECT c.awaited FROM released AS c;
