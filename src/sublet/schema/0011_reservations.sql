-- Reserved windows: GPUs promised to a tenant from one instant to another, paid used or not.

CREATE TABLE reservation (
    id             uuid        PRIMARY KEY,
    tenant_id      uuid        NOT NULL REFERENCES tenant,
    pool           text        NOT NULL REFERENCES pool,
    gpus           integer     NOT NULL CHECK (gpus > 0),
    starts_at      timestamptz NOT NULL,
    ends_at        timestamptz NOT NULL CHECK (ends_at > starts_at),
    notice_seconds integer     NOT NULL,
    credit_percent integer     NOT NULL,
    price_id       bigint      NOT NULL REFERENCES price,
    list_price_id  bigint      NOT NULL REFERENCES price,
    workload       jsonb,                                -- starts by itself; null: the tenant starts leases of it
    booked_at      timestamptz NOT NULL,
    lost_gpus      integer     NOT NULL DEFAULT 0,       -- whose promise was broken, and credited
    started        boolean     NOT NULL DEFAULT false,   -- its workload was started
    asked_at       timestamptz,                          -- since when GPUs of it were wanted and not free
    ended          boolean     NOT NULL DEFAULT false,
    CHECK (lost_gpus BETWEEN 0 AND gpus)
);
CREATE INDEX reservation_of_tenant ON reservation (tenant_id, booked_at DESC);
CREATE INDEX reservation_open ON reservation (pool, starts_at) WHERE NOT ended;

-- It is held when it is booked and charged an hour at a time.
CREATE TABLE reservation_block (
    reservation_id uuid    NOT NULL REFERENCES reservation,
    block          integer NOT NULL CHECK (block >= 0),
    hold_id        uuid    NOT NULL REFERENCES transfer,
    settled        boolean NOT NULL DEFAULT false,
    PRIMARY KEY (reservation_id, block)
);
CREATE INDEX reservation_block_open ON reservation_block (reservation_id) WHERE NOT settled;

ALTER TABLE lease
    ADD COLUMN reservation_id uuid REFERENCES reservation,  -- which pays for it
    ADD COLUMN until          timestamptz,                  -- its end at the latest
    DROP CONSTRAINT lease_tier_check,
    ADD CONSTRAINT lease_of_tier CHECK (tier IN ('interruptible', 'on_demand', 'reserved')),
    ADD CONSTRAINT lease_is_drawn CHECK ((reservation_id IS NULL) = (tier <> 'reserved'));
CREATE INDEX lease_of_reservation ON lease (reservation_id) WHERE reservation_id IS NOT NULL;

ALTER TABLE usage
    ADD COLUMN reservation_id uuid,
    DROP CONSTRAINT usage_check,
    ADD CONSTRAINT usage_of_one_thing CHECK (num_nonnulls(lease_id, model, reservation_id) = 1);

-- Why money was given back: which promise was broken, when, and what says so. A record.
CREATE TABLE credit (
    transfer_id    uuid        PRIMARY KEY,
    tenant_id      uuid        NOT NULL,
    lease_id       uuid,                    -- that gave way, if one did
    reservation_id uuid,                    -- of which it was
    gpus           integer     NOT NULL CHECK (gpus > 0),
    broken_at      timestamptz NOT NULL,
    promised_until timestamptz NOT NULL CHECK (promised_until > broken_at),
    percent        integer     NOT NULL,    -- of the price of what was left
    price_id       bigint      NOT NULL,
    amount_nanos   numeric(38,0) NOT NULL CHECK (amount_nanos > 0),
    evidence       json        NOT NULL,    -- what was recorded of it, as it stood
    recorded_at    timestamptz NOT NULL,
    record         bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    CHECK (num_nonnulls(lease_id, reservation_id) > 0)
);
CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON credit
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON credit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
