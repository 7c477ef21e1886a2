-- Contracts: capacity for months or years, by ramp step, paid used or not.

CREATE TABLE contract (
    id                uuid        PRIMARY KEY,
    tenant_id         uuid        NOT NULL REFERENCES tenant,
    pool              text        NOT NULL REFERENCES pool,
    name              text        NOT NULL CHECK (name <> ''),
    starts_at         timestamptz NOT NULL,
    ends_at           timestamptz NOT NULL CHECK (ends_at > starts_at),
    signed_at         timestamptz NOT NULL,
    notice_seconds    integer     NOT NULL,               -- of its leases
    minimum_nanos     numeric(38,0) NOT NULL CHECK (minimum_nanos >= 0),  -- over all of its time
    shortfall_percent integer     NOT NULL CHECK (shortfall_percent BETWEEN 0 AND 100),
    notice_days       integer     NOT NULL CHECK (notice_days >= 0),  -- for the tenant to terminate it
    recall_days       integer     CHECK (recall_days >= 0),           -- for the operator; null: no such right
    renewal_days      integer     NOT NULL CHECK (renewal_days >= 0), -- it goes on by so many; 0: it ends
    ended_by          text        CHECK (ended_by IN ('tenant', 'operator')),  -- before its time
    closed            boolean     NOT NULL DEFAULT false  -- all of it is charged
);
CREATE INDEX contract_of_tenant ON contract (tenant_id, signed_at DESC);

-- Each step of a contract is a reservation, charged by the day and held a day ahead.
ALTER TABLE reservation
    ADD COLUMN contract_id   uuid    REFERENCES contract,
    ADD COLUMN block_seconds integer NOT NULL DEFAULT 3600 CHECK (block_seconds > 0),
    ADD COLUMN unpaid        boolean NOT NULL DEFAULT false;  -- the wallet could not hold the next day
CREATE INDEX reservation_of_contract ON reservation (contract_id, starts_at)
    WHERE contract_id IS NOT NULL;

ALTER TABLE lease DROP CONSTRAINT lease_of_tier, DROP CONSTRAINT lease_is_drawn;
ALTER TABLE lease
    ADD CONSTRAINT lease_of_tier
        CHECK (tier IN ('interruptible', 'on_demand', 'reserved', 'contract')),
    ADD CONSTRAINT lease_is_drawn
        CHECK ((reservation_id IS NULL) = (tier NOT IN ('reserved', 'contract')));
