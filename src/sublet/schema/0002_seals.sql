-- Seals: a chain of hashes over the tables of record, so that a row that somebody with the
-- database's password edited or removed is found, whatever triggers they switched off.

-- Every table of record gets an order of its own to be sealed in.
ALTER TABLE internal_job_event ADD COLUMN record bigint GENERATED ALWAYS AS IDENTITY UNIQUE;
ALTER TABLE lease_event        ADD COLUMN record bigint GENERATED ALWAYS AS IDENTITY UNIQUE;
ALTER TABLE usage              ADD COLUMN record bigint GENERATED ALWAYS AS IDENTITY UNIQUE;
ALTER TABLE charge             ADD COLUMN record bigint GENERATED ALWAYS AS IDENTITY UNIQUE;

CREATE TABLE seal (
    number      bigint      PRIMARY KEY,          -- 1, 2, 3, …: one chain over all tables
    table_name  text        NOT NULL,
    columns     text[]      NOT NULL,             -- as they were then: later ones are not in it
    first       bigint      NOT NULL,             -- of the table's order, inclusive …
    last        bigint      NOT NULL,             -- … both
    rows        bigint      NOT NULL,
    hash        bytea       NOT NULL,             -- of the previous seal's hash, all the above, and the rows
    sealed_at   timestamptz NOT NULL,
    CHECK (first <= last)
);
CREATE UNIQUE INDEX seal_of_table ON seal (table_name, last);

CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON seal
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON seal
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
