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
