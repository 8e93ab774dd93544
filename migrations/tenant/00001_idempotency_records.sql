-- The records of one tenant's idempotency keys. Every statement is unqualified:
-- search_path must be the tenant's schema alone.

-- +goose Up
-- +goose StatementBegin
DO $$
BEGIN
    IF current_schema() IS NULL OR current_schema() = 'public' THEN
        RAISE EXCEPTION 'search_path does not lead to a tenant''s schema but to %', coalesce(current_schema(), 'none')
            USING HINT = 'Set search_path to the schema, for example by ?search_path=... in the URL, on a direct connection.';
    END IF;
END
$$;
-- +goose StatementEnd
CREATE TABLE idempotency_records (
    created_at       timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    lease_until      timestamptz NOT NULL,
    completed_at     timestamptz,
    token            uuid        NOT NULL,
    org_id           uuid        NOT NULL,
    attempt          integer     NOT NULL,
    response_status  integer,
    response_kept    boolean     NOT NULL,
    key              text        NOT NULL COLLATE "C",
    request_hash     bytea       NOT NULL,
    response_headers bytea,
    response_body    bytea,
    CONSTRAINT idempotency_records_pkey PRIMARY KEY (org_id, key),
    CONSTRAINT idempotency_records_org_id_check CHECK (org_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT idempotency_records_attempt_check CHECK (attempt >= 1),
    CONSTRAINT idempotency_records_key_check CHECK (octet_length(key) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_records_request_hash_check CHECK (octet_length(request_hash) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_records_response_status_check CHECK (response_status = 0 OR response_status BETWEEN 100 AND 999),
    CONSTRAINT idempotency_records_completed_check CHECK ((completed_at IS NULL) = (response_status IS NULL))
)
-- Room on each page for the version that completion writes, so that it is a HOT
-- update: no index is touched, and the claimed version goes without a vacuum.
WITH (fillfactor = 70);

COMMENT ON TABLE idempotency_records IS 'pgidem: one row for each idempotency key; in progress while completed_at is null';
COMMENT ON COLUMN idempotency_records.created_at IS 'when the attempt that holds or completed the record claimed it';
COMMENT ON COLUMN idempotency_records.expires_at IS 'from when on the record counts as absent and may be purged; fixed at the claim';
COMMENT ON COLUMN idempotency_records.lease_until IS 'until when the attempt in progress excludes others; extended until its outcome is stored';
COMMENT ON COLUMN idempotency_records.token IS 'fencing token of the attempt that holds or completed the record; nobody''s after a release that keeps it';
COMMENT ON COLUMN idempotency_records.response_status IS 'HTTP status of the response; 0 where it is unknown';
COMMENT ON COLUMN idempotency_records.response_kept IS 'false for a tombstone: completed, but the response was not stored';
COMMENT ON COLUMN idempotency_records.key IS 'idempotency key, with its scope in front where there is one';
COMMENT ON COLUMN idempotency_records.request_hash IS 'fingerprint of the request';

-- A schema whose name ends in the 32 digits of a UUID belongs to that org_id
-- alone (tenancy.PerOrg), so the database refuses a row of any other.
-- +goose StatementBegin
DO $$
DECLARE
    org uuid := substring(current_schema() from '[0-9a-f]{32}$')::uuid;
BEGIN
    IF org IS NOT NULL THEN
        EXECUTE format('ALTER TABLE idempotency_records ADD CONSTRAINT idempotency_records_tenant_check CHECK (org_id = %L)', org);
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE idempotency_records;
