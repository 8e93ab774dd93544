-- A request that waits for an attempt in progress marks its record, and whoever ends
-- the attempt notifies: so only what somebody waits for costs a NOTIFY.

-- +goose Up
ALTER TABLE idempotency_records ADD COLUMN awaited boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN idempotency_records.awaited IS 'somebody waits for the end of the attempt in progress, which is to be notified';

-- +goose Down
ALTER TABLE idempotency_records DROP COLUMN awaited;
