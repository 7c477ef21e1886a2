-- What a longer notice costs: a schedule for each pool, and prices that follow from it.

-- Of the price book's price so many per cent, from a notice of so many seconds on. Rows are added;
-- of those of a pool that hold already the newest does. A record.
CREATE TABLE notice_scale (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool        text        NOT NULL,
    notices     integer[]   NOT NULL,               -- in seconds, rising
    percents    integer[]   NOT NULL,               -- 100 or more, never falling
    happened_at timestamptz NOT NULL,               -- valid from
    recorded_at timestamptz NOT NULL,
    CHECK (cardinality(notices) = cardinality(percents)),
    CHECK (100 <= ALL (percents))
);
CREATE INDEX notice_scale_of_pool ON notice_scale (pool, happened_at DESC, id DESC);

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON notice_scale
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON notice_scale
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;

-- A price that follows from another by a schedule, written down when it is first sold at.
ALTER TABLE price
    ADD COLUMN base_id        bigint REFERENCES price,
    ADD COLUMN scale_id       bigint REFERENCES notice_scale,
    ADD COLUMN notice_seconds integer,              -- the step of the schedule
    ADD CONSTRAINT price_by_notice
        CHECK (num_nonnulls(base_id, scale_id, notice_seconds) IN (0, 3));
CREATE UNIQUE INDEX price_of_notice ON price (base_id, scale_id, notice_seconds)
    WHERE base_id IS NOT NULL;
