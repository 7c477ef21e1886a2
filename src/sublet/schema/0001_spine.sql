-- The spine: who, which GPUs, money, leases, usage, models. Forward only.
--
-- Rows of record are added, never changed: triggers at the end of this file refuse it, and
-- `sublet verify` checks that the triggers are there. The other tables are the present
-- state, kept beside the record so that it need not be replayed at every look.

-- ─── tenants ────────────────────────────────────────────────────────────────────────────

CREATE TABLE tenant (
    id              uuid        PRIMARY KEY,
    name            text        NOT NULL UNIQUE CHECK (name <> ''),
    kind            text        NOT NULL CHECK (kind IN ('customer', 'house')),
    network_allowed boolean     NOT NULL DEFAULT false,  -- may its workloads reach a network?
    created_at      timestamptz NOT NULL
);

CREATE TABLE api_key (
    id         uuid        PRIMARY KEY,
    tenant_id  uuid        REFERENCES tenant,   -- null: the operator's own
    role       text        NOT NULL CHECK (role IN ('operator', 'tenant')),
    name       text        NOT NULL CHECK (name <> ''),
    digest     bytea       NOT NULL UNIQUE,     -- sha256 of the key; the key itself is never stored
    hint       text        NOT NULL,            -- its first characters, to tell keys apart
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    CHECK ((role = 'operator') = (tenant_id IS NULL))
);
CREATE INDEX api_key_of_tenant ON api_key (tenant_id);

-- ─── ledger ─────────────────────────────────────────────────────────────────────────────

CREATE TABLE account (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code            text    NOT NULL UNIQUE,      -- 'tenant:<id>:wallet'
    currency        char(3) NOT NULL,
    prepaid         boolean NOT NULL,             -- its debits may never exceed its credits
    debits_pending  numeric(38,0) NOT NULL DEFAULT 0 CHECK (debits_pending  >= 0),
    debits_posted   numeric(38,0) NOT NULL DEFAULT 0 CHECK (debits_posted   >= 0),
    credits_pending numeric(38,0) NOT NULL DEFAULT 0 CHECK (credits_pending >= 0),
    credits_posted  numeric(38,0) NOT NULL DEFAULT 0 CHECK (credits_posted  >= 0),
    -- The last line of defence: whatever the code above does, a wallet cannot be overspent.
    CONSTRAINT prepaid_is_not_overspent
        CHECK (NOT prepaid OR debits_posted + debits_pending <= credits_posted)
);

CREATE TABLE transfer (
    id             uuid        PRIMARY KEY,       -- chosen by the caller: the idempotency key
    kind           text        NOT NULL CHECK (kind IN ('posted', 'pending', 'post', 'void', 'expire')),
    pending_id     uuid        REFERENCES transfer,  -- what a post, void or expire resolves
    debit_account  bigint      NOT NULL REFERENCES account,
    credit_account bigint      NOT NULL REFERENCES account,
    amount_nanos   numeric(38,0) NOT NULL CHECK (amount_nanos >= 0),
    reason         text        NOT NULL,          -- 'tokens', 'lease', 'payment', 'credit', …
    sequence       bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    expires_at     timestamptz,                   -- only of a pending one
    happened_at    timestamptz NOT NULL,          -- in the world
    recorded_at    timestamptz NOT NULL,          -- in this table
    CHECK (debit_account <> credit_account),
    CHECK ((kind IN ('post', 'void', 'expire')) = (pending_id IS NOT NULL)),
    CHECK ((kind = 'pending') = (expires_at IS NOT NULL)),
    CHECK ((kind IN ('void', 'expire')) = (amount_nanos = 0))
);
-- A hold is resolved once, for ever.
CREATE UNIQUE INDEX transfer_resolves_once ON transfer (pending_id) WHERE pending_id IS NOT NULL;
CREATE INDEX transfer_of_debit_account ON transfer (debit_account, sequence);
CREATE INDEX transfer_of_credit_account ON transfer (credit_account, sequence);

-- Which pending transfers are unresolved now: an index that stays small, not a record.
CREATE TABLE open_hold (
    transfer_id  uuid        PRIMARY KEY REFERENCES transfer,
    holder       text        NOT NULL,            -- who will resolve it: 'gateway:<name>:<instance>', 'lease:<id>'
    expires_at   timestamptz NOT NULL
);
CREATE INDEX open_hold_by_expiry ON open_hold (expires_at);
CREATE INDEX open_hold_by_holder ON open_hold (holder text_pattern_ops);

-- ─── fleet ──────────────────────────────────────────────────────────────────────────────

CREATE TABLE pool (
    name            text    PRIMARY KEY,          -- the GPU model, at this site
    gpus            integer NOT NULL CHECK (gpus >= 0),           -- healthy now
    notice_seconds  integer NOT NULL CHECK (notice_seconds >= 0), -- the longest an internal job may wait for leases to go
    lendable        boolean NOT NULL DEFAULT true,
    lending_limit   integer CHECK (lending_limit >= 0)            -- most GPUs ever lent; null: no limit
);

-- How many healthy GPUs a pool had, from when on. A record.
CREATE TABLE pool_event (
    pool           text        NOT NULL REFERENCES pool,
    sequence       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gpus           integer     NOT NULL,
    notice_seconds integer     NOT NULL,
    happened_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL
);
CREATE INDEX pool_event_of_pool ON pool_event (pool, sequence);

-- What the cluster's queue said of internal jobs. A record: one row a change.
CREATE TABLE internal_job_event (
    job_id      uuid        NOT NULL,
    event       text        NOT NULL CHECK (event IN ('submitted', 'started', 'ended')),
    pool        text        NOT NULL REFERENCES pool,
    gpus        integer     NOT NULL CHECK (gpus > 0),
    name        text        NOT NULL,
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, event)
);

-- ─── market ─────────────────────────────────────────────────────────────────────────────

-- The price book: rows are added; the newest of a SKU holds.
CREATE TABLE price (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku         text        NOT NULL,             -- 'lease:<pool>:<tier>', 'model:<name>:input'
    nanos       numeric(38,0) NOT NULL CHECK (nanos >= 0),
    per         bigint      NOT NULL CHECK (per > 0),
    currency    char(3)     NOT NULL,
    happened_at timestamptz NOT NULL,             -- valid from
    recorded_at timestamptz NOT NULL
);
CREATE INDEX price_of_sku ON price (sku, id DESC);

-- ─── leases ─────────────────────────────────────────────────────────────────────────────

CREATE TABLE lease (
    id              uuid        PRIMARY KEY,
    tenant_id       uuid        NOT NULL REFERENCES tenant,
    pool            text        NOT NULL REFERENCES pool,
    gpus            integer     NOT NULL CHECK (gpus > 0),
    tier            text        NOT NULL CHECK (tier IN ('interruptible', 'on_demand')),
    notice_seconds  integer     NOT NULL,         -- promised when it was sold
    price_id        bigint      NOT NULL REFERENCES price,
    workload        jsonb       NOT NULL,         -- command, files, limits; see leases/store.py
    max_seconds     integer     NOT NULL CHECK (max_seconds > 0),
    requested_at    timestamptz NOT NULL,
    state           text        NOT NULL,
    since           timestamptz NOT NULL,         -- when it entered `state`
    version         integer     NOT NULL,         -- counts moves, and guards the write
    end_reason      text,
    release_asked   text,                         -- an end reason somebody asked for; the loop acts on it
    running_at      timestamptz,                  -- usable from
    stopped_at      timestamptz,                  -- usable until
    ends_at         timestamptz,                  -- running_at + max_seconds
    stops_at        timestamptz,                  -- while draining: killed then
    paid_until      timestamptz,                  -- held money covers it until then
    exit_code       integer,
    detail          text
);
CREATE INDEX lease_of_tenant ON lease (tenant_id, requested_at DESC);
CREATE INDEX lease_live ON lease (id) WHERE state <> 'ended';

-- Every move of every lease. A record.
CREATE TABLE lease_event (
    lease_id    uuid        NOT NULL REFERENCES lease,
    version     integer     NOT NULL,
    state       text        NOT NULL,
    reason      text,
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (lease_id, version)
);

-- ─── metering ───────────────────────────────────────────────────────────────────────────

-- What was used. A record; (source, sequence) makes a repeated report count once.
CREATE TABLE usage (
    id                   uuid        PRIMARY KEY,
    source               text        NOT NULL,    -- who counted: 'lease:<id>', 'gateway:<instance>'
    sequence             bigint      NOT NULL,
    tenant_id            uuid        NOT NULL REFERENCES tenant,
    api_key_id           uuid        REFERENCES api_key,
    lease_id             uuid        REFERENCES lease,  -- of a lease's seconds
    model                text,                          -- of a model's tokens
    request_id           text,
    gpu_seconds          bigint      NOT NULL DEFAULT 0 CHECK (gpu_seconds >= 0),
    input_tokens         bigint      NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    cached_input_tokens  bigint      NOT NULL DEFAULT 0 CHECK (cached_input_tokens >= 0),
    output_tokens        bigint      NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    delivered_tokens     bigint      NOT NULL DEFAULT 0 CHECK (delivered_tokens >= 0),
    outcome              text        NOT NULL,    -- 'completed', 'aborted', 'reclaimed', 'failed'
    happened_at          timestamptz NOT NULL,
    recorded_at          timestamptz NOT NULL,
    UNIQUE (source, sequence),
    CHECK ((lease_id IS NULL) <> (model IS NULL))
);

-- What was asked for it: usage × price = transfer. A record; one charge a usage and a SKU.
CREATE TABLE charge (
    id           uuid        PRIMARY KEY,
    usage_id     uuid        NOT NULL REFERENCES usage,
    tenant_id    uuid        NOT NULL REFERENCES tenant,
    price_id     bigint      NOT NULL REFERENCES price,
    quantity     bigint      NOT NULL CHECK (quantity >= 0),
    amount_nanos numeric(38,0) NOT NULL CHECK (amount_nanos >= 0),
    transfer_id  uuid        REFERENCES transfer,   -- null only when the amount is zero
    happened_at  timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL,
    UNIQUE (usage_id, price_id),
    CHECK ((transfer_id IS NULL) <= (amount_nanos = 0))
);
CREATE INDEX charge_of_tenant ON charge (tenant_id, recorded_at DESC);
CREATE INDEX charge_of_transfer ON charge (transfer_id);

-- A lease is held and charged a minute at a time: which block is held by which transfer.
CREATE TABLE lease_block (
    lease_id    uuid    NOT NULL REFERENCES lease,
    block       integer NOT NULL CHECK (block >= 0),
    hold_id     uuid    NOT NULL REFERENCES transfer,
    settled     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (lease_id, block)
);
CREATE INDEX lease_block_open ON lease_block (lease_id) WHERE NOT settled;

-- ─── models ─────────────────────────────────────────────────────────────────────────────

CREATE TABLE deployment (
    name           text        PRIMARY KEY,
    recipe         text        NOT NULL,
    context_tokens integer     NOT NULL CHECK (context_tokens > 0),
    wanted         boolean     NOT NULL DEFAULT true,  -- should a replica run?
    created_at     timestamptz NOT NULL
);

CREATE TABLE replica (
    id          uuid        PRIMARY KEY,            -- also the id of its lease
    deployment  text        NOT NULL REFERENCES deployment,
    url         text        NOT NULL,
    secret      text        NOT NULL,               -- loopback only, useless once the replica is gone
    state       text        NOT NULL CHECK (state IN ('starting', 'ready', 'draining', 'gone')),
    detail      text,
    since       timestamptz NOT NULL
);
CREATE INDEX replica_live ON replica (deployment) WHERE state <> 'gone';

-- ─── gateway ────────────────────────────────────────────────────────────────────────────

CREATE TABLE gateway (
    instance  uuid        PRIMARY KEY,              -- one run of one gateway process
    name      text        NOT NULL,
    seen_at   timestamptz NOT NULL
);

-- ─── the past stands ────────────────────────────────────────────────────────────────────

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% holds records: rows are added, never changed or removed', TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['transfer', 'pool_event', 'internal_job_event', 'price',
                                        'lease_event', 'usage', 'charge'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
