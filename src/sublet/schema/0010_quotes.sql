-- Prices that begin later, that are one tenant's, or that end; and quotes, which hold a price.

ALTER TABLE price
    ADD COLUMN tenant_id   uuid,          -- whose rate it is; null: everybody's, the list price
    ADD COLUMN valid_until timestamptz;   -- a tenant's rate may end; null: until the next row
CREATE INDEX price_valid ON price (sku, happened_at DESC, id DESC);

-- What the list said when it was sold; null: sold at the list price, or before this was kept.
ALTER TABLE lease ADD COLUMN list_price_id bigint REFERENCES price;

CREATE TABLE quote (
    id             uuid        PRIMARY KEY,
    tenant_id      uuid        NOT NULL REFERENCES tenant,
    pool           text        NOT NULL REFERENCES pool,
    gpus           integer     NOT NULL CHECK (gpus > 0),
    tier           text        NOT NULL,
    notice_seconds integer     NOT NULL,
    max_seconds    integer     NOT NULL CHECK (max_seconds > 0),
    starts_at      timestamptz,                        -- of a window; null: from when it starts
    price_id       bigint      NOT NULL REFERENCES price,
    list_price_id  bigint      NOT NULL REFERENCES price,
    made_at        timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    accepted_at    timestamptz,                        -- once
    sold           uuid,                               -- the lease or reservation that it became
    CHECK ((accepted_at IS NULL) = (sold IS NULL)),
    CHECK (made_at < expires_at)
);
CREATE INDEX quote_of_tenant ON quote (tenant_id, made_at DESC);
