-- The results of steps (idempotency.Step), and what child keys are derived from.

-- +goose Up
CREATE TABLE idempotency_steps (
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    token        uuid        NOT NULL,
    org_id       uuid        NOT NULL,
    key          text        NOT NULL COLLATE "C",
    request_hash bytea       NOT NULL,
    name         text        NOT NULL COLLATE "C",
    result       bytea       NOT NULL,
    CONSTRAINT idempotency_steps_pkey PRIMARY KEY (org_id, key, request_hash, name),
    CONSTRAINT idempotency_steps_org_id_check CHECK (org_id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT idempotency_steps_key_check CHECK (octet_length(key) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_steps_request_hash_check CHECK (octet_length(request_hash) BETWEEN 1 AND 512),
    CONSTRAINT idempotency_steps_name_check CHECK (octet_length(name) BETWEEN 1 AND 128)
);

COMMENT ON TABLE idempotency_steps IS 'pgidem: one row for each step of a request whose result is kept for later attempts';
COMMENT ON COLUMN idempotency_steps.created_at IS 'when the attempt that stored it claimed the key';
COMMENT ON COLUMN idempotency_steps.expires_at IS 'an attempt that claims the key from then on does not see it; moved on with the record';
COMMENT ON COLUMN idempotency_steps.token IS 'fencing token of the attempt that stored it';
COMMENT ON COLUMN idempotency_steps.key IS 'idempotency key, with its scope in front where there is one';
COMMENT ON COLUMN idempotency_steps.request_hash IS 'fingerprint of the request';
COMMENT ON COLUMN idempotency_steps.name IS 'name of the step; one that begins with a control character is not a handler''s';
COMMENT ON COLUMN idempotency_steps.result IS 'JSON';

-- As for the records (00001): a schema whose name ends in the 32 digits of a UUID
-- belongs to that org_id alone.
-- +goose StatementBegin
DO $$
DECLARE
    org uuid := substring(current_schema() from '[0-9a-f]{32}$')::uuid;
BEGIN
    IF org IS NOT NULL THEN
        EXECUTE format('ALTER TABLE idempotency_steps ADD CONSTRAINT idempotency_steps_tenant_check CHECK (org_id = %L)', org);
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
DROP TABLE idempotency_steps;
