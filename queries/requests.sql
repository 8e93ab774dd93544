-- name: ClaimInsertRecoverable :execrows
-- ClaimInsertRecoverable is ClaimInsert for a request that is kept while it is in
-- progress. It affects no row, and writes nothing, where there is a record.
WITH claimed AS (
    INSERT INTO /*tenant.*/idempotency_records AS r (
        created_at, expires_at, lease_until, token, org_id, attempt, response_kept, key, request_hash
    ) VALUES (
        now(), now() + @ttl::interval, now() + @lease::interval, @token, @org_id, 1, true, @key, @request_hash
    )
    ON CONFLICT (org_id, key) DO NOTHING
    RETURNING r.created_at, r.expires_at, r.lease_until, r.token, r.org_id, r.key, r.request_hash
)
INSERT INTO /*tenant.*/idempotency_requests AS q (
    created_at, expires_at, next_at, token, org_id, attempts, gave_up, key, request_hash,
    method, target, host, pattern, path_values, headers, body
)
SELECT c.created_at, c.expires_at, c.lease_until, c.token, c.org_id, 0, false, c.key, c.request_hash,
       @method::text, @target::bytea, @host::bytea, @pattern::text, @path_values::bytea, @headers::bytea, @body::bytea
FROM claimed AS c
ON CONFLICT (org_id, key) DO UPDATE
SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, next_at = EXCLUDED.next_at,
    lock_key = NULL, token = EXCLUDED.token, attempts = 0, gave_up = false, request_hash = EXCLUDED.request_hash,
    method = EXCLUDED.method, target = EXCLUDED.target, host = EXCLUDED.host, pattern = EXCLUDED.pattern,
    path_values = EXCLUDED.path_values, headers = EXCLUDED.headers, body = EXCLUDED.body;

-- name: ClaimTakeOverRecoverable :one
-- ClaimTakeOverRecoverable is ClaimTakeOver for a request that is kept while it is in
-- progress, anew: its attempts are counted from zero.
WITH taken AS (
    UPDATE /*tenant.*/idempotency_records AS r
    SET created_at = now(), expires_at = now() + @ttl::interval, lease_until = now() + @lease::interval,
        completed_at = NULL, token = @token, attempt = @attempt, awaited = (r.awaited AND r.completed_at IS NULL),
        response_status = NULL, response_kept = true, request_hash = @request_hash,
        response_headers = NULL, response_body = NULL
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @seen_token
      AND ((r.completed_at IS NULL AND r.lease_until <= now()) OR (r.completed_at IS NOT NULL AND r.expires_at <= now()))
    RETURNING r.org_id, r.key, r.request_hash, r.created_at, r.expires_at, r.lease_until, r.token
), moved AS (
    UPDATE /*tenant.*/idempotency_steps AS s
    SET expires_at = t.expires_at
    FROM taken AS t
    WHERE s.org_id = t.org_id AND s.key = t.key AND s.request_hash = t.request_hash AND s.expires_at > t.created_at
), kept AS (
    INSERT INTO /*tenant.*/idempotency_requests AS q (
        created_at, expires_at, next_at, token, org_id, attempts, gave_up, key, request_hash,
        method, target, host, pattern, path_values, headers, body
    )
    SELECT t.created_at, t.expires_at, t.lease_until, t.token, t.org_id, 0, false, t.key, t.request_hash,
           @method::text, @target::bytea, @host::bytea, @pattern::text, @path_values::bytea, @headers::bytea, @body::bytea
    FROM taken AS t
    ON CONFLICT (org_id, key) DO UPDATE
    SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, next_at = EXCLUDED.next_at,
        lock_key = NULL, token = EXCLUDED.token, attempts = 0, gave_up = false, request_hash = EXCLUDED.request_hash,
        method = EXCLUDED.method, target = EXCLUDED.target, host = EXCLUDED.host, pattern = EXCLUDED.pattern,
        path_values = EXCLUDED.path_values, headers = EXCLUDED.headers, body = EXCLUDED.body
)
SELECT count(*) FROM taken AS t;

-- name: ClaimInterrupted :one
-- ClaimInterrupted is ClaimTakeOver for a recovery: of a record that has not expired, for
-- the same request, and only while that is kept. The expiry tells that it is of this
-- attempt: one that took over without keeping its request has moved the record's alone.
WITH taken AS (
    UPDATE /*tenant.*/idempotency_records AS r
    SET created_at = now(), expires_at = now() + @ttl::interval, lease_until = now() + @lease::interval,
        token = @token, attempt = @attempt
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @seen_token
      AND r.completed_at IS NULL AND r.lease_until <= now() AND r.expires_at > now()
      AND EXISTS (
          SELECT 1
          FROM /*tenant.*/idempotency_requests AS q
          WHERE q.org_id = r.org_id AND q.key = r.key AND q.request_hash = r.request_hash
            AND (q.expires_at = r.expires_at OR q.lock_key IS NOT NULL)
      )
    RETURNING r.org_id, r.key, r.request_hash, r.created_at, r.expires_at
), moved AS (
    UPDATE /*tenant.*/idempotency_steps AS s
    SET expires_at = t.expires_at
    FROM taken AS t
    WHERE s.org_id = t.org_id AND s.key = t.key AND s.request_hash = t.request_hash AND s.expires_at > t.created_at
), kept AS (
    UPDATE /*tenant.*/idempotency_requests AS q
    SET expires_at = t.expires_at
    FROM taken AS t
    WHERE q.org_id = t.org_id AND q.key = t.key
)
SELECT count(*) FROM taken AS t;

-- name: CompleteRecoverable :one
-- CompleteRecoverable is Complete for an attempt whose request is kept, and no longer.
WITH completed AS (
    UPDATE /*tenant.*/idempotency_records AS r
    SET completed_at = now(), response_status = @response_status::integer, response_kept = @response_kept,
        response_headers = @response_headers, response_body = @response_body
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token
    RETURNING r.org_id, r.key, r.awaited
), gone AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    USING completed AS c
    WHERE q.org_id = c.org_id AND q.key = c.key
)
SELECT c.awaited FROM completed AS c;

-- name: ReleaseRecoverable :one
-- ReleaseRecoverable is Release for an attempt whose request is kept, and no longer.
WITH released AS (
    DELETE FROM /*tenant.*/idempotency_records AS r
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL AND r.attempt = 1
      AND NOT EXISTS (
          SELECT 1
          FROM /*tenant.*/idempotency_steps AS s
          WHERE s.org_id = r.org_id AND s.key = r.key AND s.request_hash = r.request_hash AND s.expires_at > r.created_at
      )
    RETURNING r.org_id, r.key, r.awaited
), gone AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    USING released AS c
    WHERE q.org_id = c.org_id AND q.key = c.key
)
SELECT c.awaited FROM released AS c;

-- name: ReleaseKeptRecoverable :one
-- ReleaseKeptRecoverable is ReleaseKept for an attempt whose request is kept, and no
-- longer.
WITH released AS (
    UPDATE /*tenant.*/idempotency_records AS r
    SET lease_until = now(), token = @spent_token
    WHERE r.org_id = @org_id AND r.key = @key AND r.token = @token AND r.completed_at IS NULL
    RETURNING r.org_id, r.key, r.awaited
), gone AS (
    DELETE FROM /*tenant.*/idempotency_requests AS q
    USING released AS c
    WHERE q.org_id = c.org_id AND q.key = c.key
)
SELECT c.awaited FROM released AS c;

-- name: KeepRequest :execrows
-- KeepRequest keeps the request of an attempt that is about to claim its key by the lock
-- of a transaction, in the place of what a dead one has left. It keeps none, and does not
-- wait, while somebody holds the lock, and none of a key that the attempt will not get; and
-- it leaves one alone that another has just kept of the same request.
INSERT INTO /*tenant.*/idempotency_requests AS q (
    created_at, expires_at, next_at, lock_key, token, org_id, attempts, gave_up, key, request_hash,
    method, target, host, pattern, path_values, headers, body
)
SELECT now(), now() + a.ttl, now() + a.lease, a.lock_key, a.token, a.org_id, 0, false, a.key, a.request_hash,
       a.method, a.target, a.host, a.pattern, a.path_values, a.headers, a.body
FROM (
    SELECT @ttl::interval AS ttl, @lease::interval AS lease, @lock_key::bigint AS lock_key, @token::uuid AS token,
           @org_id::uuid AS org_id, @key::text AS key, @request_hash::bytea AS request_hash, @method::text AS method,
           @target::bytea AS target, @host::bytea AS host, @pattern::text AS pattern, @path_values::bytea AS path_values,
           @headers::bytea AS headers, @body::bytea AS body
) AS a
WHERE pg_try_advisory_xact_lock(a.lock_key) AND NOT EXISTS (
    SELECT 1
    FROM /*tenant.*/idempotency_records AS r
    WHERE r.org_id = a.org_id AND r.key = a.key
      AND (
          (r.completed_at IS NOT NULL AND r.expires_at > now())
          OR (r.completed_at IS NULL AND (r.lease_until > now() OR (r.request_hash <> a.request_hash AND r.expires_at > now())))
      )
)
ON CONFLICT (org_id, key) DO UPDATE
SET created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at, next_at = EXCLUDED.next_at,
    lock_key = EXCLUDED.lock_key, token = EXCLUDED.token, attempts = 0, gave_up = false, request_hash = EXCLUDED.request_hash,
    method = EXCLUDED.method, target = EXCLUDED.target, host = EXCLUDED.host, pattern = EXCLUDED.pattern,
    path_values = EXCLUDED.path_values, headers = EXCLUDED.headers, body = EXCLUDED.body
WHERE q.next_at <= EXCLUDED.created_at OR q.attempts > 0 OR q.gave_up OR q.lock_key IS NULL OR q.request_hash <> EXCLUDED.request_hash;

-- name: HasRequest :one
-- HasRequest tells whether a request is kept.
SELECT EXISTS (
    SELECT 1
    FROM /*tenant.*/idempotency_requests AS q
    WHERE q.org_id = @org_id AND q.key = @key AND q.request_hash = @request_hash AND q.expires_at > now()
)::boolean AS kept;

-- name: KeptBy :one
-- KeptBy tells which attempt has kept a request.
SELECT q.token
FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.key = @key AND q.request_hash = @request_hash AND q.expires_at > now();

-- name: ForgetKey :exec
-- ForgetKey keeps the request of a key no longer, whichever it is.
DELETE FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.key = @key;

-- name: ForgetAttempt :exec
-- ForgetAttempt keeps a request no longer that the attempt with the token has kept, unless
-- somebody else holds the lock, and so the request.
DELETE FROM /*tenant.*/idempotency_requests AS q
WHERE q.org_id = @org_id AND q.key = @key AND q.token = @token AND pg_try_advisory_xact_lock(q.lock_key);

-- name: DueOrgs :many
-- DueOrgs lists the tenants with requests to be run again, or given up. It forgets what
-- was kept of a key as that completed, which would look interrupted once the record has
-- expired. The minute spares what is claimed anew at that moment.
WITH completed AS (
    DELETE FROM /*tenant.*/idempotency_requests AS d
    USING /*tenant.*/idempotency_records AS c
    WHERE d.org_id = c.org_id AND d.key = c.key AND d.lock_key IS NOT NULL AND d.next_at <= now()
      AND c.completed_at IS NOT NULL AND c.expires_at > now() + interval '1 minute'
)
SELECT DISTINCT q.org_id
FROM /*tenant.*/idempotency_requests AS q
LEFT JOIN /*tenant.*/idempotency_records AS r ON r.org_id = q.org_id AND r.key = q.key
WHERE q.next_at <= now() AND q.expires_at > now() AND NOT q.gave_up
  AND (
      (q.lock_key IS NULL AND r.completed_at IS NULL AND r.request_hash = q.request_hash AND r.expires_at = q.expires_at AND r.lease_until <= now())
      OR (
          q.lock_key IS NOT NULL
          AND (
              r.key IS NULL
              OR (r.completed_at IS NOT NULL AND r.expires_at <= now())
              OR (r.completed_at IS NULL AND r.lease_until <= now() AND (r.request_hash = q.request_hash OR r.expires_at <= now()))
          )
      )
  );

-- name: PickRequests :many
-- PickRequests picks requests to be run again, each for one who asks, and counts that as
-- an attempt: their records are in progress under a lease that has lapsed, or, where a
-- transaction would have held the lock, nobody holds it. Those of the longest wait come
-- first; the pause before the next attempt doubles with each.
WITH picked AS MATERIALIZED (
    SELECT q.org_id, q.key, now() + power(2, q.attempts) * sqlc.arg(pause)::interval AS next_at
    FROM /*tenant.*/idempotency_requests AS q
    LEFT JOIN /*tenant.*/idempotency_records AS r ON r.org_id = q.org_id AND r.key = q.key
    WHERE q.next_at <= now() AND q.expires_at > now() AND NOT q.gave_up AND q.attempts < @max_attempts::integer
      AND q.org_id = ANY (sqlc.arg(org_ids)::text[]::uuid[])
      AND (
          (q.lock_key IS NULL AND r.completed_at IS NULL AND r.request_hash = q.request_hash AND r.expires_at = q.expires_at AND r.lease_until <= now())
          OR (
              q.lock_key IS NOT NULL
              AND (
                  r.key IS NULL
                  OR (r.completed_at IS NOT NULL AND r.expires_at <= now())
                  OR (r.completed_at IS NULL AND r.lease_until <= now() AND (r.request_hash = q.request_hash OR r.expires_at <= now()))
              )
              AND NOT EXISTS (
                  SELECT 1
                  FROM pg_catalog.pg_locks AS l
                  JOIN pg_catalog.pg_database AS d ON d.oid = l.database
                  WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.granted
                    AND l.classid::bigint = ((q.lock_key >> 32) & 4294967295)
                    AND l.objid::bigint = (q.lock_key & 4294967295) AND l.objsubid = 1
              )
          )
      )
    ORDER BY q.next_at
    LIMIT @batch_rows
    FOR UPDATE OF q SKIP LOCKED
)
UPDATE /*tenant.*/idempotency_requests AS q
SET attempts = q.attempts + 1, next_at = p.next_at
FROM picked AS p
WHERE q.org_id = p.org_id AND q.key = p.key
RETURNING q.org_id, q.key, q.request_hash, q.attempts, q.method, q.target, q.host, q.pattern, q.path_values, q.headers, q.body;

-- name: GiveBack :exec
-- GiveBack takes back an attempt that was none.
UPDATE /*tenant.*/idempotency_requests AS q
SET attempts = q.attempts - 1, next_at = now() + @pause::interval
WHERE q.org_id = @org_id AND q.key = @key AND q.attempts = @attempts AND q.attempts > 0;

-- name: GiveUp :execrows
-- GiveUp marks a request whose last attempt has failed, once.
UPDATE /*tenant.*/idempotency_requests AS q
SET gave_up = true
WHERE q.org_id = @org_id AND q.key = @key AND q.attempts = @attempts AND NOT q.gave_up;

-- name: GiveUpDead :many
-- GiveUpDead marks the requests whose attempts are used up, and of which nobody is left
-- to say so: the process of the last one has died as well.
WITH spent AS MATERIALIZED (
    SELECT q.org_id, q.key
    FROM /*tenant.*/idempotency_requests AS q
    LEFT JOIN /*tenant.*/idempotency_records AS r ON r.org_id = q.org_id AND r.key = q.key
    WHERE q.next_at <= now() AND q.expires_at > now() AND NOT q.gave_up AND q.attempts >= @max_attempts::integer
      AND q.org_id = ANY (sqlc.arg(org_ids)::text[]::uuid[])
      AND (
          (q.lock_key IS NULL AND r.completed_at IS NULL AND r.request_hash = q.request_hash AND r.expires_at = q.expires_at AND r.lease_until <= now())
          OR (
              q.lock_key IS NOT NULL
              AND (
                  r.key IS NULL
                  OR (r.completed_at IS NOT NULL AND r.expires_at <= now())
                  OR (r.completed_at IS NULL AND r.lease_until <= now() AND (r.request_hash = q.request_hash OR r.expires_at <= now()))
              )
              AND NOT EXISTS (
                  SELECT 1
                  FROM pg_catalog.pg_locks AS l
                  JOIN pg_catalog.pg_database AS d ON d.oid = l.database
                  WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.granted
                    AND l.classid::bigint = ((q.lock_key >> 32) & 4294967295)
                    AND l.objid::bigint = (q.lock_key & 4294967295) AND l.objsubid = 1
              )
          )
      )
    ORDER BY q.next_at
    LIMIT @batch_rows
    FOR UPDATE OF q SKIP LOCKED
)
UPDATE /*tenant.*/idempotency_requests AS q
SET gave_up = true
FROM spent AS p
WHERE q.org_id = p.org_id AND q.key = p.key
RETURNING q.org_id, q.key, q.attempts, q.method, q.target, q.headers;
