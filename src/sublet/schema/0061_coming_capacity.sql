-- Capacity that the operator expects: GPUs of a pool from a date on. A record: what is known of one last
-- is its newest row; no GPUs: it is there, or will not come.

CREATE TABLE coming_capacity (
    id          uuid        NOT NULL,
    pool        text        NOT NULL REFERENCES pool,
    name        text        NOT NULL CHECK (name <> ''),
    gpus        integer     NOT NULL CHECK (gpus >= 0),
    ready_at    timestamptz NOT NULL,
    happened_at timestamptz NOT NULL,                       -- it was said
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY
);
CREATE INDEX coming_capacity_of ON coming_capacity (id, record DESC);

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON coming_capacity
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON coming_capacity
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;
