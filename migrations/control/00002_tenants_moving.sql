-- A tenant that is on its way to another cluster.

-- +goose Up
ALTER TABLE tenants
    ADD COLUMN moving_to text COLLATE "C",
    ADD COLUMN move_id uuid,
    ADD COLUMN resume boolean NOT NULL DEFAULT false;
ALTER TABLE tenants ADD CONSTRAINT tenants_moving_to_check CHECK (moving_to ~ '^[a-z0-9._-]{0,63}$' AND moving_to <> cluster);
ALTER TABLE tenants ADD CONSTRAINT tenants_moving_check CHECK (moving_to IS NULL OR state = 'suspended');
ALTER TABLE tenants ADD CONSTRAINT tenants_move_id_check CHECK ((moving_to IS NULL) = (move_id IS NULL));
ALTER TABLE tenants ADD CONSTRAINT tenants_resume_check CHECK (moving_to IS NOT NULL OR NOT resume);

COMMENT ON COLUMN tenants.moving_to IS 'cluster to which the schema is being moved; null but for a tenant that is';
COMMENT ON COLUMN tenants.move_id IS 'fencing token of the run that moves it';
COMMENT ON COLUMN tenants.resume IS 'whether the tenant is active again when it has been moved';

-- +goose Down
ALTER TABLE tenants DROP COLUMN moving_to, DROP COLUMN move_id, DROP COLUMN resume;
