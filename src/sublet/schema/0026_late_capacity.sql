-- Contracts whose capacity is late, and what is owed of a minimum that is missed.

ALTER TABLE contract
    ADD COLUMN late_percent    integer NOT NULL DEFAULT 0    -- of the price of what is late, not paid; as signed before: 0
        CHECK (late_percent BETWEEN 0 AND 100),
    ADD COLUMN late_days       integer CHECK (late_days >= 0),  -- so late, the tenant may end it at once; null: never
    ADD COLUMN missing_percent integer NOT NULL DEFAULT 100  -- of what is missing to the minimum, owed by the tenant
        CHECK (missing_percent BETWEEN 0 AND 100),
    DROP CONSTRAINT contract_ended_by_check,
    ADD CONSTRAINT contract_ended_by_check CHECK (ended_by IN ('tenant', 'operator', 'late'));

-- How many GPUs of a contract's step were there at once: a row when it starts, and one whenever there
-- are more than ever before. A record.
CREATE TABLE contract_delivery (
    reservation_id uuid        NOT NULL,                   -- the step
    contract_id    uuid        NOT NULL REFERENCES contract,
    gpus           integer     NOT NULL CHECK (gpus >= 0),
    happened_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    record         bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (reservation_id, gpus)
);
CREATE INDEX contract_delivery_of ON contract_delivery (contract_id);

-- Of what runs already nobody looked: it is taken for delivered.
INSERT INTO contract_delivery (reservation_id, contract_id, gpus, happened_at, recorded_at)
SELECT id, contract_id, gpus, starts_at, now()
  FROM reservation
 WHERE contract_id IS NOT NULL AND starts_at <= now();

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON contract_delivery
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON contract_delivery
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;
