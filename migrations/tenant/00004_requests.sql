-- The requests of routes that opted in (idempotency.WithRecoverable), while they are in
-- progress, so that pgstore.Completer can run those again whose process died. A row goes
-- when its request completes, or when its client is told that it did not.

-- +goose Up
CREATE TABLE idempotency_requests (
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    next_at      timestamptz NOT NULL,
    lock_key     bigint,
    token        uuid        NOT NULL,
    org_id       uuid        NOT NULL,
    attempts     integer     NOT NULL,
    gave_up      boolean     NOT NULL,
    key          text        NOT NULL COLLATE "C",
    request_hash bytea       NOT NULL,
    method       text        NOT NULL,
    target       bytea       NOT NULL,
    host         bytea       NOT NULL,
    pattern      text        NOT NULL,
    path_values  bytea,
    headers      bytea,
    body         bytea,
    CONSTRAINT idempotency_requests_pkey PRIMARY KEY (org_id, key),
    CONSTRAINT idempotency_requests_org_id_check CHECK (org_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT idempotency_requests_attempts_check CHECK (attempts >= 0),
    CONSTRAINT idempotency_requests_key_check CHECK (octet_length(key) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_requests_request_hash_check CHECK (octet_length(request_hash) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_requests_method_check CHECK (octet_length(method) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_requests_head_check CHECK (
        octet_length(target) + octet_length(host) + octet_length(pattern) <= 1048576
        AND octet_length(path_values) <= 2097152 AND octet_length(headers) <= 2097152
    )
);

COMMENT ON TABLE idempotency_requests IS 'pgidem: one row for each request in progress that may be run again should its process die';
COMMENT ON COLUMN idempotency_requests.created_at IS 'when the attempt that kept it claimed the key';
COMMENT ON COLUMN idempotency_requests.expires_at IS 'from when on it is not run again and may be purged; that of the record';
COMMENT ON COLUMN idempotency_requests.next_at IS 'not to be run again before';
COMMENT ON COLUMN idempotency_requests.lock_key IS 'advisory lock that an attempt in a transaction holds; null where attempts have leases';
COMMENT ON COLUMN idempotency_requests.token IS 'fencing token of the attempt that kept it';
COMMENT ON COLUMN idempotency_requests.attempts IS 'how often it has been begun again';
COMMENT ON COLUMN idempotency_requests.gave_up IS 'its attempts are used up, and that was reported';
COMMENT ON COLUMN idempotency_requests.key IS 'idempotency key, with its scope in front where there is one';
COMMENT ON COLUMN idempotency_requests.request_hash IS 'fingerprint of the request';
COMMENT ON COLUMN idempotency_requests.target IS 'path and query, in their encoded form';

-- As for the records (00001): a schema whose name ends in the 32 digits of a UUID
-- belongs to that org_id alone.
-- +goose StatementBegin
DO $$
DECLARE
    org uuid := substring(current_schema() from '[0-9a-f]{32}$')::uuid;
BEGIN
    IF org IS NOT NULL THEN
        EXECUTE format('ALTER TABLE idempotency_requests ADD CONSTRAINT idempotency_requests_tenant_check CHECK (org_id = %L)', org);
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE idempotency_requests;
