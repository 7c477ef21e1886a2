-- Five token counters; a charge is one row with its lines in arrays; no foreign keys on either.
--
-- Usages and charges come by the thousand in a second, and a foreign key is a look-up and a row
-- lock for each: so what they name is checked by `sublet verify`, not by the database.

ALTER TABLE usage RENAME COLUMN cached_input_tokens TO cache_read_tokens;
ALTER TABLE usage
    -- The five are disjoint: they add up to what the engine worked on.
    ADD COLUMN cache_write_tokens bigint NOT NULL DEFAULT 0 CHECK (cache_write_tokens >= 0),
    ADD COLUMN reasoning_tokens   bigint NOT NULL DEFAULT 0 CHECK (reasoning_tokens >= 0),
    DROP CONSTRAINT usage_tenant_id_fkey,
    DROP CONSTRAINT usage_api_key_id_fkey,
    DROP CONSTRAINT usage_lease_id_fkey;
-- A new row of the price book for the new name: the old ones stand, charges name them.
INSERT INTO price (sku, nanos, per, currency, happened_at, recorded_at)
SELECT regexp_replace(sku, ':cached_input$', ':cache_read'), nanos, per, currency, now(), now()
  FROM (SELECT DISTINCT ON (sku) * FROM price WHERE sku LIKE '%:cached\_input'
         ORDER BY sku, id DESC) AS newest;

-- What was asked for it: usage × price = transfer. A record; one charge a usage, with a line a
-- SKU in three arrays: a row a line would cost four times as much to write. Read `charge_line`.
ALTER TABLE charge RENAME TO charge_before;
CREATE TABLE charge (
    usage_id     uuid          CONSTRAINT charge_usage PRIMARY KEY,
    tenant_id    uuid          NOT NULL,
    price_ids    bigint[]      NOT NULL,            -- which version of which price
    quantities   bigint[]      NOT NULL CHECK (0 <= ALL (quantities)),
    amounts      numeric[]     NOT NULL CHECK (0 <= ALL (amounts)),  -- nanos, each rounded by itself
    amount_nanos numeric(38,0) NOT NULL,            -- their sum
    transfer_id  uuid,                              -- shared by charges that were handed over together
    happened_at  timestamptz   NOT NULL,
    recorded_at  timestamptz   NOT NULL,
    record       bigint        GENERATED ALWAYS AS IDENTITY CONSTRAINT charge_order UNIQUE,
    CHECK (cardinality(price_ids) = cardinality(quantities)
           AND cardinality(price_ids) = cardinality(amounts)),
    CHECK ((transfer_id IS NULL) <= (amount_nanos = 0))
);
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos, transfer_id,
                    happened_at, recorded_at)
SELECT usage_id, tenant_id, array_agg(price_id ORDER BY price_id),
       array_agg(quantity ORDER BY price_id), array_agg(amount_nanos ORDER BY price_id),
       -- A line of nothing named the transfer of the others, or none.
       sum(amount_nanos), (array_agg(transfer_id ORDER BY amount_nanos DESC))[1],
       min(happened_at), min(recorded_at)
  FROM charge_before
 GROUP BY usage_id, tenant_id
 ORDER BY min(recorded_at);
DROP TABLE charge_before;
CREATE INDEX charge_of_tenant ON charge (tenant_id, record DESC);
CREATE INDEX charge_of_transfer ON charge (transfer_id);
CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON charge
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON charge
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE VIEW charge_line AS
SELECT c.usage_id, c.tenant_id, l.price_id, l.quantity, l.amount_nanos, c.transfer_id,
       c.happened_at, c.recorded_at, c.record
  FROM charge c,
       unnest(c.price_ids, c.quantities, c.amounts) AS l(price_id, quantity, amount_nanos);

-- Seals name columns that are no more, and their hashes are made another way now: what they
-- covered is sealed again, from the start of the chain.
ALTER TABLE seal DISABLE TRIGGER USER;
DELETE FROM seal;
ALTER TABLE seal ENABLE TRIGGER USER;
