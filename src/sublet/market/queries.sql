-- name: insert_price
INSERT INTO price (sku, nanos, per, currency, happened_at, recorded_at)
VALUES (%(sku)s, %(nanos)s, %(per)s, %(currency)s, %(happened_at)s, %(recorded_at)s)
RETURNING id, sku, nanos, per, currency, happened_at;

-- name: get_price
-- The newest row of a SKU holds.
SELECT id, sku, nanos, per, currency, happened_at
  FROM price
 WHERE sku = %(sku)s
 ORDER BY id DESC
 LIMIT 1;

-- name: get_price_by_id
SELECT id, sku, nanos, per, currency, happened_at FROM price WHERE id = %(id)s;

-- name: list_prices
SELECT DISTINCT ON (sku) id, sku, nanos, per, currency, happened_at
  FROM price
 ORDER BY sku, id DESC;

-- name: insert_cost
INSERT INTO pool_cost (pool, power_nanos, wear_nanos, support_nanos, capital_nanos, capital_share,
                       currency, happened_at, recorded_at)
VALUES (%(pool)s, %(power_nanos)s, %(wear_nanos)s, %(support_nanos)s, %(capital_nanos)s,
        %(capital_share)s, %(currency)s, %(happened_at)s, %(recorded_at)s)
RETURNING id, power_nanos, wear_nanos, support_nanos, capital_nanos, capital_share;

-- name: get_cost
-- The newest row of a pool holds.
SELECT id, power_nanos, wear_nanos, support_nanos, capital_nanos, capital_share
  FROM pool_cost
 WHERE pool = %(pool)s
 ORDER BY id DESC
 LIMIT 1;

-- name: lock_floor
-- Prices and costs of one pool are compared by one transaction at a time.
SELECT pg_advisory_xact_lock(hashtextextended('floor:' || %(pool)s, 0));

-- name: insert_exception
INSERT INTO floor_exception (price_id, cost_id, name, happened_at, recorded_at)
VALUES (%(price_id)s, %(cost_id)s, %(name)s, %(happened_at)s, %(recorded_at)s);

-- name: list_exceptions
SELECT p.sku, e.name
  FROM floor_exception e JOIN price p ON p.id = e.price_id
 WHERE e.cost_id = %(cost_id)s
 ORDER BY p.id;
