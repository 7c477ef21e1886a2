-- Suppliers: outside APIs that models' answers are bought from when own replicas are short.

CREATE TABLE supplier (
    name           text    PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    dialect        text    NOT NULL CHECK (dialect IN ('openai', 'xai', 'anthropic', 'gemini', 'bedrock')),
    url            text    NOT NULL,
    project        text    NOT NULL,            -- whose quota it shares: mostly its own name
    enabled        boolean NOT NULL,
    first_token_ms integer NOT NULL CHECK (first_token_ms > 0),
    sealed_key     bytea,                       -- by core/vault; null: none was given yet
    key_set_at     timestamptz
);

-- Which deployment's answers a model of a supplier may stand for.
CREATE TABLE supplier_model (
    supplier   text NOT NULL REFERENCES supplier,
    model      text NOT NULL CHECK (model <> ''),      -- as the supplier calls it
    deployment text NOT NULL,
    PRIMARY KEY (supplier, model),
    UNIQUE (supplier, deployment)
);

-- What a supplier takes for `per` tokens, from happened_at until the next row. A record.
CREATE TABLE supplier_price (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    supplier          text   NOT NULL REFERENCES supplier,
    model             text   NOT NULL,
    tier              text   NOT NULL,
    input_nanos       numeric(38,0) NOT NULL CHECK (input_nanos >= 0),
    cache_read_nanos  numeric(38,0) NOT NULL CHECK (cache_read_nanos >= 0),
    cache_write_nanos numeric(38,0) NOT NULL CHECK (cache_write_nanos >= 0),
    cache_write_long_nanos numeric(38,0) NOT NULL CHECK (cache_write_long_nanos >= 0),
    output_nanos      numeric(38,0) NOT NULL CHECK (output_nanos >= 0),
    reasoning_nanos   numeric(38,0) NOT NULL CHECK (reasoning_nanos >= 0),
    per               bigint NOT NULL CHECK (per > 0),
    happened_at       timestamptz NOT NULL,
    recorded_at       timestamptz NOT NULL
);
CREATE INDEX supplier_price_of ON supplier_price (supplier, model, tier, happened_at DESC, id DESC);

-- What may be used: of a supplier's project, or lost on a deployment. The present state.
CREATE TABLE quota_limit (
    id           bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope        text    NOT NULL,              -- 'project:<name>', 'loss:<deployment>'
    model        text,                          -- null: all of them together
    tier         text,                          -- null: all of them together
    measure      text    NOT NULL CHECK (measure IN
                 ('requests', 'tokens', 'input_tokens', 'output_tokens', 'spend', 'loss')),
    span         text    NOT NULL CHECK (span IN ('minute', 'ten_minutes', 'day')),
    zone         text    NOT NULL,              -- where a day ends
    asked        boolean NOT NULL,              -- counts what was asked for, whatever was used
    amount       numeric(38,0) NOT NULL CHECK (amount >= 0),
    -- What the supplier said last: less than `amount` in all, and used by others than us.
    told_amount  numeric(38,0),
    told_until   timestamptz,
    others       numeric(38,0) NOT NULL DEFAULT 0,
    others_until timestamptz,
    UNIQUE NULLS NOT DISTINCT (scope, model, tier, measure, span)
);

-- What each gateway process may use of a limit without asking.
CREATE TABLE quota_share (
    limit_id bigint NOT NULL REFERENCES quota_limit ON DELETE CASCADE,
    holder   text   NOT NULL,                   -- the gateway's name: one process a name
    instance uuid   NOT NULL,
    held     numeric(38,0) NOT NULL CHECK (held >= 0),
    told     numeric(38,0) NOT NULL CHECK (told >= 0),  -- of all that this run used, in `quota_use`
    seen_at  timestamptz NOT NULL,
    PRIMARY KEY (limit_id, holder)
);

-- What was used, by when its request ended.
CREATE TABLE quota_use (
    limit_id bigint NOT NULL REFERENCES quota_limit ON DELETE CASCADE,
    slot     timestamptz NOT NULL,              -- it ended before the slot's end
    amount   numeric(38,0) NOT NULL,
    PRIMARY KEY (limit_id, slot)
);

-- A supplier, or one model of it, that is not asked just now.
CREATE TABLE supplier_rest (
    supplier text NOT NULL REFERENCES supplier,
    model    text NOT NULL,                     -- '': all of them
    until    timestamptz NOT NULL,
    why      text NOT NULL,
    PRIMARY KEY (supplier, model)
);

-- Under which terms answers of a deployment may be bought.
CREATE TABLE buying (
    deployment text    PRIMARY KEY,
    enabled    boolean NOT NULL,
    margin_percent numeric(9,6) NOT NULL CHECK (margin_percent < 100)
);

-- What was bought: a call of a supplier that it may take money for. A record.
CREATE TABLE purchase (
    id                uuid   PRIMARY KEY,
    supplier          text   NOT NULL REFERENCES supplier,
    model             text   NOT NULL,
    deployment        text   NOT NULL,
    tenant_id         uuid   NOT NULL REFERENCES tenant,
    request_id        text   NOT NULL,          -- ours
    supplier_request  text,                     -- the supplier's name for it, if it gave one
    asked_tier        text   NOT NULL,
    tier              text   NOT NULL,          -- as which it was served, and is paid
    price_id          bigint NOT NULL REFERENCES supplier_price,
    input_tokens            bigint NOT NULL CHECK (input_tokens >= 0),
    cache_read_tokens       bigint NOT NULL CHECK (cache_read_tokens >= 0),
    cache_write_tokens      bigint NOT NULL CHECK (cache_write_tokens >= 0),
    cache_write_long_tokens bigint NOT NULL CHECK (cache_write_long_tokens >= 0),
    output_tokens           bigint NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens        bigint NOT NULL CHECK (reasoning_tokens >= 0),
    amount_nanos      numeric(38,0) NOT NULL CHECK (amount_nanos >= 0),
    outcome           text   NOT NULL CHECK (outcome IN ('completed', 'aborted', 'failed')),
    basis             text   NOT NULL CHECK (basis IN ('reported', 'partly', 'estimated')),
    doubt             text,                     -- what of its count cannot be right
    first_token_ms    bigint,
    transfer_id       uuid   REFERENCES transfer,  -- null: it cost nothing
    happened_at       timestamptz NOT NULL,
    recorded_at       timestamptz NOT NULL,
    record            bigint GENERATED ALWAYS AS IDENTITY UNIQUE
);
CREATE INDEX purchase_of_supplier ON purchase (supplier, happened_at);
CREATE INDEX purchase_of_transfer ON purchase (transfer_id);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['supplier_price', 'purchase'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
