-- The register of assets: what the capital bought. Records: a lot is added, never edited; another
-- view of its life is a change, from a month on.

CREATE TABLE asset_lot (
    name        text        PRIMARY KEY CHECK (name <> ''),
    document    json        NOT NULL,  -- as finance/asset.py has it; amounts are strings of nanos
    happened_at timestamptz NOT NULL,  -- it was bought
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE
);

CREATE TABLE asset_change (
    lot          text        NOT NULL REFERENCES asset_lot,
    effective_on date        NOT NULL,  -- the first day of a month
    document     json        NOT NULL,
    happened_at  timestamptz NOT NULL,  -- it begins to hold
    recorded_at  timestamptz NOT NULL,
    record       bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (lot, effective_on)
);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['asset_lot', 'asset_change'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
