-- Limits of keys and tenants. What a budget has spent and what runs on it are kept here, not in
-- any gateway, so that however many there are, and however they end, none is overspent.

CREATE TABLE usage_limit (
    id         uuid          PRIMARY KEY,
    tenant_id  uuid          NOT NULL REFERENCES tenant,
    api_key_id uuid          REFERENCES api_key,    -- null: of all keys of the tenant together
    kind       text          NOT NULL CHECK (kind IN ('requests_per_minute', 'tokens_per_minute',
                                                      'streams', 'day', 'month', 'lifetime')),
    -- Both may set one, and both hold: what an operator set no tenant raises.
    set_by     text          NOT NULL CHECK (set_by IN ('operator', 'tenant')),
    amount     numeric(38,0) NOT NULL CHECK (amount >= 0),  -- of a day, month or lifetime: nanos
    set_at     timestamptz   NOT NULL
);
CREATE UNIQUE INDEX usage_limit_once
    ON usage_limit (tenant_id, coalesce(api_key_id, tenant_id), kind, set_by);

-- Counts changes, so that a gateway sees with one look that there was none.
CREATE TABLE usage_limit_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL
);
INSERT INTO usage_limit_version (version) VALUES (0);

CREATE TABLE budget_spent (
    limit_id  uuid          NOT NULL REFERENCES usage_limit ON DELETE CASCADE,
    starts_at timestamptz   NOT NULL,   -- of the day or month, in UTC
    nanos     numeric(38,0) NOT NULL CHECK (nanos >= 0),
    PRIMARY KEY (limit_id, starts_at)
);

-- What a request that runs may cost at most: gone when its usage is recorded.
CREATE TABLE budget_hold (
    usage_id   uuid          NOT NULL,
    limit_id   uuid          NOT NULL REFERENCES usage_limit ON DELETE CASCADE,
    starts_at  timestamptz   NOT NULL,  -- of the period in which the request began, which pays
    nanos      numeric(38,0) NOT NULL CHECK (nanos >= 0),
    holder     text          NOT NULL,  -- 'gateway:<name>:<instance>'
    expires_at timestamptz   NOT NULL,
    PRIMARY KEY (usage_id, limit_id)
);
CREATE INDEX budget_hold_of_limit ON budget_hold (limit_id);
CREATE INDEX budget_hold_of_holder ON budget_hold (holder text_pattern_ops);

-- What each gateway let pass lately, for the others to see. Worth nothing after a crash.
CREATE UNLOGGED TABLE rate_use (
    gateway  text        NOT NULL,      -- its name
    subject  uuid        NOT NULL,      -- a key or a tenant
    requests bigint      NOT NULL,      -- since it first saw the subject
    tokens   bigint      NOT NULL,
    running  integer     NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (gateway, subject)
);
