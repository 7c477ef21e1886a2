-- What a pool's GPUs cost, from which the least price of a lease follows.

-- Rows are added; the newest of a pool holds. A record.
CREATE TABLE pool_cost (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool          text        NOT NULL,
    power_nanos   numeric(38,0) NOT NULL CHECK (power_nanos >= 0),    -- of a GPU, per hour
    wear_nanos    numeric(38,0) NOT NULL CHECK (wear_nanos >= 0),
    support_nanos numeric(38,0) NOT NULL CHECK (support_nanos >= 0),
    capital_nanos numeric(38,0) NOT NULL CHECK (capital_nanos >= 0),
    capital_share double precision NOT NULL CHECK (capital_share BETWEEN 0 AND 1),  -- in the floor
    currency      char(3)     NOT NULL,
    happened_at   timestamptz NOT NULL,             -- valid from
    recorded_at   timestamptz NOT NULL
);
CREATE INDEX pool_cost_of_pool ON pool_cost (pool, id DESC);

-- A price that is below a floor, and why it may be. A record.
CREATE TABLE floor_exception (
    price_id    bigint      NOT NULL REFERENCES price,
    cost_id     bigint      NOT NULL REFERENCES pool_cost,
    name        text        NOT NULL CHECK (name <> ''),
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,  -- the order it is sealed in
    PRIMARY KEY (price_id, cost_id)
);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['pool_cost', 'floor_exception'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
