-- Invoices: what was charged, put into documents that never change.

-- Whom invoices of a tenant are addressed to: the present state.
CREATE TABLE billing_profile (
    tenant_id       uuid    PRIMARY KEY REFERENCES tenant,
    legal_name      text    NOT NULL CHECK (legal_name <> ''),
    address         text    NOT NULL,
    tax_id          text    NOT NULL,
    jurisdiction    text    NOT NULL,           -- '': no tax is charged
    currency        char(3) NOT NULL,
    email           text    NOT NULL,
    terms_days      integer NOT NULL CHECK (terms_days BETWEEN 0 AND 365),
    time_zone       text    NOT NULL,
    threshold_nanos numeric(38,0) CHECK (threshold_nanos > 0)
);

-- A rate holds in [valid_from, valid_until). A record.
CREATE TABLE tax_rate (
    jurisdiction text    NOT NULL CHECK (jurisdiction <> ''),
    name         text    NOT NULL CHECK (name <> ''),
    percent      numeric(9,6) NOT NULL CHECK (percent BETWEEN 0 AND 100),
    valid_from   date    NOT NULL,
    valid_until  date    CHECK (valid_until > valid_from),
    happened_at  timestamptz NOT NULL,          -- it begins to hold
    recorded_at  timestamptz NOT NULL,
    record       bigint  GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (jurisdiction, valid_from)
);

-- What one USD was on a day, in another currency. A record.
CREATE TABLE exchange_rate (
    currency    char(3) NOT NULL,
    day         date    NOT NULL,
    unit_nanos  numeric(38,0) NOT NULL CHECK (unit_nanos > 0),
    source      text    NOT NULL,
    happened_at timestamptz NOT NULL,           -- the day begins
    recorded_at timestamptz NOT NULL,
    record      bigint  GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (currency, day)
);

-- A record; what becomes of it is in `invoice_event`.
CREATE TABLE invoice (
    id             uuid        PRIMARY KEY,
    number         bigint      NOT NULL UNIQUE CHECK (number > 0),  -- one series, without gaps
    kind           text        NOT NULL CHECK (kind IN ('invoice', 'credit_note')),
    corrects       uuid        REFERENCES invoice,
    tenant_id      uuid        NOT NULL REFERENCES tenant,
    starts_at      timestamptz NOT NULL,
    ends_at        timestamptz NOT NULL CHECK (ends_at > starts_at),
    -- How far it looked: what was recorded later is on a later one. See invoices/README.md.
    charge_mark    bigint      NOT NULL,
    credit_mark    bigint      NOT NULL,
    transfer_mark  bigint      NOT NULL,
    net_nanos      numeric(38,0) NOT NULL,
    tax_nanos      numeric(38,0) NOT NULL,
    rounding_nanos numeric(38,0) NOT NULL,
    prepaid_nanos  numeric(38,0) NOT NULL,
    currency       char(3)     NOT NULL,
    unit_nanos     numeric(38,0) NOT NULL CHECK (unit_nanos > 0),
    profile        json        NOT NULL,        -- as it was then
    tax            json,                        -- the rate; null: none is charged
    lines          json        NOT NULL,
    due_on         date        NOT NULL,
    happened_at    timestamptz NOT NULL,        -- it was issued
    recorded_at    timestamptz NOT NULL,
    record         bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    CHECK ((kind = 'credit_note') = (corrects IS NOT NULL)),
    CHECK ((net_nanos + tax_nanos + rounding_nanos) % 10000000 = 0)
);
CREATE INDEX invoice_of_tenant ON invoice (tenant_id, ends_at DESC);

CREATE TABLE invoice_event (
    invoice_id  uuid        NOT NULL REFERENCES invoice,
    state       text        NOT NULL CHECK (state IN ('issued', 'paid', 'void')),
    detail      text        NOT NULL,            -- the payment's reference, or why
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (invoice_id, state)
);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['tax_rate', 'exchange_rate', 'invoice', 'invoice_event'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
