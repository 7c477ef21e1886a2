-- What was taken back of contracts: from then on it is credited day by day, for as long as its step
-- lasts, and no longer all at once. What was credited before this stands, and is not here.

CREATE TABLE contract_break (
    id             uuid        PRIMARY KEY,                -- follows from the lease, or from since when it was waited for
    reservation_id uuid        NOT NULL,                   -- the step
    contract_id    uuid        NOT NULL REFERENCES contract,
    lease_id       uuid,                                   -- that gave way, if one did
    gpus           integer     NOT NULL CHECK (gpus > 0),
    happened_at    timestamptz NOT NULL,
    recorded_at    timestamptz NOT NULL,
    record         bigint      GENERATED ALWAYS AS IDENTITY UNIQUE
);
CREATE INDEX contract_break_of ON contract_break (contract_id);
CREATE INDEX contract_break_of_lease ON contract_break (lease_id) WHERE lease_id IS NOT NULL;

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON contract_break
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON contract_break
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;
