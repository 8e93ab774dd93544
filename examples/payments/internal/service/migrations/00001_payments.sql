-- The payments of one tenant, in the tenant's own schema beside its idempotency
-- records. Statements are unqualified: search_path is the tenant's schema alone.

-- +goose Up
CREATE TABLE payments (
    id         uuid        NOT NULL,
    reference  text        NOT NULL,
    payee      text        NOT NULL,
    amount     bigint      NOT NULL,
    currency   text        NOT NULL,
    created_by text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payments_pkey PRIMARY KEY (id),
    CONSTRAINT payments_reference_key UNIQUE (reference),
    CONSTRAINT payments_reference_check CHECK (char_length(reference) BETWEEN 1 AND 64),
    CONSTRAINT payments_payee_check CHECK (char_length(payee) BETWEEN 1 AND 140),
    CONSTRAINT payments_amount_check CHECK (amount BETWEEN 1 AND 100000000000),
    CONSTRAINT payments_currency_check CHECK (currency ~ '^[A-Z]{3}$')
);

COMMENT ON COLUMN payments.reference IS 'the caller''s own name for the payment; a second run of the same request finds the first by it';
COMMENT ON COLUMN payments.amount IS 'in the smallest unit of the currency, such as cents';

-- +goose Down
DROP TABLE payments;
