-- The registry of tenants. Every statement is unqualified: search_path must be the
-- control schema alone.

-- +goose Up
CREATE TABLE tenants (
    org_id      uuid        NOT NULL,
    schema_name text        NOT NULL COLLATE "C",
    cluster     text        NOT NULL COLLATE "C" DEFAULT '',
    state       text        NOT NULL COLLATE "C" DEFAULT 'provisioning',
    version     bigint      NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_pkey PRIMARY KEY (org_id),
    CONSTRAINT tenants_schema_key UNIQUE (schema_name, cluster),
    CONSTRAINT tenants_org_id_check CHECK (org_id <> '00000000-0000-0000-0000-000000000000'),
    -- What tenancy.ParseSchema accepts.
    CONSTRAINT tenants_schema_name_check CHECK (
        schema_name ~ '^[a-z_][a-z0-9_]{0,62}$'
        AND schema_name !~ '^pg_' AND schema_name NOT IN ('public', 'information_schema')
    ),
    -- The tables of a schema whose name ends in the digits of a UUID take no other org's rows.
    CONSTRAINT tenants_schema_org_check CHECK (
        schema_name !~ '[0-9a-f]{32}$' OR right(schema_name, 32) = replace(org_id::text, '-', '')
    ),
    CONSTRAINT tenants_cluster_check CHECK (cluster ~ '^[a-z0-9._-]{0,63}$'),
    CONSTRAINT tenants_state_check CHECK (state IN ('provisioning', 'active', 'suspended', 'deleting')),
    CONSTRAINT tenants_version_check CHECK (version >= 0),
    CONSTRAINT tenants_updated_at_check CHECK (updated_at >= created_at)
);

COMMENT ON TABLE tenants IS 'pgidem: one row for each tenant; a change is told to all who listen';
COMMENT ON COLUMN tenants.schema_name IS 'schema that holds the tenant''s tables';
COMMENT ON COLUMN tenants.cluster IS 'name of the PostgreSQL server, or group of servers, with the schema; empty where there is one alone';
COMMENT ON COLUMN tenants.state IS 'provisioning, active, suspended or deleting; only an active tenant is served';
COMMENT ON COLUMN tenants.version IS 'number of the newest migration that the schema has had; 0 where that is not known';
COMMENT ON COLUMN tenants.updated_at IS 'when the row was last changed, by whomever';

-- This schema is nobody's.
-- +goose StatementBegin
DO $$
BEGIN
    EXECUTE format('ALTER TABLE tenants ADD CONSTRAINT tenants_schema_control_check CHECK (schema_name <> %L)', current_schema());
END
$$;
-- +goose StatementEnd

-- The triggers see changes made by hand as well.
-- +goose StatementBegin
CREATE FUNCTION tenants_touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := greatest(pg_catalog.now(), NEW.created_at);
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER tenants_touch BEFORE UPDATE ON tenants FOR EACH ROW EXECUTE FUNCTION tenants_touch();

-- Names of channels have at most 63 bytes. Two control schemas of one database that share
-- the first 48 of their names merely hear of each other's changes.
-- +goose StatementBegin
CREATE FUNCTION tenants_tell() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    channel text := pg_catalog.left('pgidem_tenants_' || TG_TABLE_SCHEMA, 63);
BEGIN
    IF TG_OP IN ('UPDATE', 'DELETE') THEN
        PERFORM pg_catalog.pg_notify(channel, OLD.org_id::text);
    END IF;
    IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND NEW.org_id <> OLD.org_id THEN
        PERFORM pg_catalog.pg_notify(channel, NEW.org_id::text);
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pg_catalog.pg_notify(channel, 'all');
    END IF;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER tenants_tell AFTER INSERT OR UPDATE OR DELETE ON tenants FOR EACH ROW EXECUTE FUNCTION tenants_tell();
CREATE TRIGGER tenants_tell_all AFTER TRUNCATE ON tenants FOR EACH STATEMENT EXECUTE FUNCTION tenants_tell();

-- +goose Down
DROP TABLE tenants;
DROP FUNCTION tenants_tell();
DROP FUNCTION tenants_touch();
