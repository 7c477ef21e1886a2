-- What is to be sent, by e-mail or to an address that a tenant named; kept until it is delivered.
CREATE TABLE outgoing (
    id         uuid        PRIMARY KEY,             -- derived from what it says: the same is sent once
    tenant_id  uuid        NOT NULL REFERENCES tenant,
    channel    text        NOT NULL CHECK (channel IN ('email', 'webhook')),
    target     text        NOT NULL,                -- an address
    subject    text        NOT NULL,
    body       text        NOT NULL,                -- plain text, or JSON of a webhook
    invoice_id uuid        REFERENCES invoice,      -- whose PDF goes with it
    made_at    timestamptz NOT NULL,
    attempts   integer     NOT NULL DEFAULT 0,
    next_at    timestamptz NOT NULL,
    outcome    text        CHECK (outcome IN ('delivered', 'given_up')),  -- null: neither yet
    detail     text
);
CREATE INDEX outgoing_open ON outgoing (next_at) WHERE outcome IS NULL;
CREATE INDEX outgoing_of_tenant ON outgoing (tenant_id, made_at DESC);

-- What a tenant means to spend in a month, and whom to tell at which shares of it.
CREATE TABLE budget (
    id           uuid    PRIMARY KEY,
    tenant_id    uuid    NOT NULL REFERENCES tenant,
    name         text    NOT NULL CHECK (name <> ''),
    amount_nanos numeric(38,0) NOT NULL CHECK (amount_nanos > 0),
    key          text,                              -- only of this API key, by its name
    tag_name     text,                              -- only of what has this tag
    tag_value    text,
    percents     integer[] NOT NULL CHECK (cardinality(percents) BETWEEN 1 AND 10),
    email        text    NOT NULL,                  -- '': none
    webhook      text    NOT NULL,                  -- '': none
    UNIQUE (tenant_id, name),
    CHECK ((tag_name IS NULL) = (tag_value IS NULL))
);

-- That a share was reached in a month. A record.
CREATE TABLE budget_alert (
    budget_id    uuid        NOT NULL,
    month        date        NOT NULL,
    percent      integer     NOT NULL,
    spent_nanos  numeric(38,0) NOT NULL,
    happened_at  timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL,
    record       bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (budget_id, month, percent)
);

-- Whose money is set aside, so that it buys nothing more, until its invoices are paid.
CREATE TABLE suspension (
    tenant_id uuid        PRIMARY KEY REFERENCES tenant,
    since     timestamptz NOT NULL
);

-- What is done so many days after an invoice was due: the operator's table.
CREATE TABLE dunning_step (
    days   integer PRIMARY KEY CHECK (days BETWEEN 0 AND 365),
    action text    NOT NULL CHECK (action IN ('remind', 'suspend'))
);

-- That it was done. A record.
CREATE TABLE dunning_event (
    invoice_id  uuid        NOT NULL REFERENCES invoice,
    days        integer     NOT NULL,
    action      text        NOT NULL,
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (invoice_id, days)
);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['budget_alert', 'dunning_event'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
