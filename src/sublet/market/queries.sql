-- name: insert_price
INSERT INTO price (sku, nanos, per, currency, tenant_id, valid_until, happened_at, recorded_at)
VALUES (%(sku)s, %(nanos)s, %(per)s, %(currency)s, %(tenant_id)s, %(valid_until)s,
        %(happened_at)s, %(recorded_at)s)
RETURNING *;

-- name: get_price
-- The newest row of a SKU, whether it holds already or later.
SELECT *
  FROM price
 WHERE sku = %(sku)s AND tenant_id IS NULL AND base_id IS NULL
 ORDER BY id DESC
 LIMIT 1;

-- name: get_price_by_id
SELECT * FROM price WHERE id = %(id)s;

-- name: list_prices
SELECT DISTINCT ON (sku) *
  FROM price
 WHERE tenant_id IS NULL AND base_id IS NULL
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

-- name: list_sales_under_floors
-- Each price that leases or windows were sold at beside each floor that held then; what was quoted
-- is held to the floor of when it was quoted. Leases on a window were sold with it, and a contract's
-- steps when it was signed.
WITH sale AS (
    SELECT l.id, l.pool, l.price_id, coalesce(q.made_at, l.requested_at) AS sold_at
      FROM lease l
      LEFT JOIN quote q ON q.sold = l.id
     WHERE l.reservation_id IS NULL AND l.state <> 'requested'
     UNION ALL
    SELECT r.id, r.pool, r.price_id, coalesce(q.made_at, r.booked_at)
      FROM reservation r
      LEFT JOIN quote q ON q.sold = r.id
)
SELECT c.*, p.id AS price_id, p.sku, p.nanos, p.per, count(*) AS sales,
       (array_agg(s.id ORDER BY s.sold_at, s.id))[1] AS example,
       EXISTS (SELECT FROM floor_exception e
                WHERE e.price_id IN (p.id, p.base_id) AND e.cost_id = c.id)
           AS excepted
  FROM sale s
  JOIN price p ON p.id = s.price_id
  JOIN LATERAL (SELECT * FROM pool_cost
                 WHERE pool = s.pool AND recorded_at <= s.sold_at
                 ORDER BY id DESC
                 LIMIT 1) AS c ON true
 GROUP BY c.id, c.pool, c.power_nanos, c.wear_nanos, c.support_nanos, c.capital_nanos,
          c.capital_share, c.currency, c.happened_at, c.recorded_at, p.id, p.sku, p.nanos, p.per
 ORDER BY p.id, c.id;

-- name: find_valid
-- The rows of SKUs that hold at an instant: of each a tenant's own rate, and the list price.
SELECT asked.sku AS asked_sku, asked.tenant_id AS asked_by, price.*
  FROM unnest(%(skus)s::text[], %(tenants)s::uuid[]) AS asked(sku, tenant_id)
 CROSS JOIN LATERAL (
       (SELECT * FROM price
         WHERE sku = asked.sku AND tenant_id = asked.tenant_id AND happened_at <= %(at)s
         ORDER BY happened_at DESC, id DESC
         LIMIT 1)
       UNION ALL
       (SELECT * FROM price
         WHERE sku = asked.sku AND tenant_id IS NULL AND happened_at <= %(at)s
         ORDER BY happened_at DESC, id DESC
         LIMIT 1)
       ) AS price;

-- name: list_valid
-- Every row of the book that holds at an instant or begins later, tenants' rates included.
SELECT *
  FROM (SELECT *, lead(happened_at) OVER (PARTITION BY sku, tenant_id ORDER BY happened_at, id) AS next_at
          FROM price
         WHERE base_id IS NULL) AS p
 WHERE (next_at IS NULL OR next_at > %(at)s)
   AND (valid_until IS NULL OR valid_until > %(at)s)
   AND (%(tenant_id)s::uuid IS NULL OR tenant_id IS NULL OR tenant_id = %(tenant_id)s)
 ORDER BY sku, tenant_id NULLS FIRST, happened_at, id;

-- name: insert_quote
INSERT INTO quote (id, tenant_id, pool, gpus, tier, notice_seconds, max_seconds, starts_at,
                   price_id, list_price_id, made_at, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(pool)s, %(gpus)s, %(tier)s, %(notice_seconds)s, %(max_seconds)s,
        %(starts_at)s, %(price_id)s, %(list_price_id)s, %(made_at)s, %(expires_at)s);

-- name: lock_quote
SELECT * FROM quote WHERE id = %(id)s AND tenant_id = %(tenant_id)s FOR UPDATE;

-- name: list_quotes
SELECT * FROM quote WHERE tenant_id = %(tenant_id)s ORDER BY made_at DESC, id LIMIT %(limit)s;

-- name: accept_quote
UPDATE quote SET accepted_at = %(now)s, sold = %(sold)s WHERE id = %(id)s AND accepted_at IS NULL;

-- name: get_bids
SELECT pool, made_at, bids
  FROM bid
 WHERE pool = ANY(%(pools)s::text[]) AND made_at >= %(since)s AND bids IS NOT NULL;

-- name: put_bids
-- What was found later stands.
INSERT INTO bid (pool, made_at, bids)
VALUES (%(pool)s, %(made_at)s, %(bids)s)
    ON CONFLICT (pool) DO UPDATE SET made_at = excluded.made_at, bids = excluded.bids
 WHERE bid.made_at <= excluded.made_at;

-- name: insert_scale
INSERT INTO notice_scale (pool, notices, percents, happened_at, recorded_at)
VALUES (%(pool)s, %(notices)s::integer[], %(percents)s::integer[], %(happened_at)s, %(recorded_at)s)
RETURNING id, notices, percents;

-- name: get_scales
SELECT asked.pool, scale.id, scale.notices, scale.percents
  FROM unnest(%(pools)s::text[]) AS asked(pool)
 CROSS JOIN LATERAL (
       SELECT id, notices, percents
         FROM notice_scale
        WHERE pool = asked.pool AND happened_at <= %(at)s
        ORDER BY happened_at DESC, id DESC
        LIMIT 1
       ) AS scale;

-- name: get_notice_price
SELECT *
  FROM price
 WHERE base_id = %(base_id)s AND scale_id = %(scale_id)s AND notice_seconds = %(notice_seconds)s;

-- name: insert_notice_price
INSERT INTO price (sku, nanos, per, currency, tenant_id, base_id, scale_id, notice_seconds,
                   happened_at, recorded_at)
VALUES (%(sku)s, %(nanos)s, %(per)s, %(currency)s, %(tenant_id)s, %(base_id)s, %(scale_id)s,
        %(notice_seconds)s, %(now)s, %(now)s)
    ON CONFLICT DO NOTHING
RETURNING *;

-- name: list_sales_by_notice
-- Each lease and window that was sold while its pool had a schedule of notices, beside it; what was
-- quoted beside that of when it was quoted. What is drawn on a window was sold with it, and what a
-- contract costs was agreed.
WITH sale AS (
    SELECT 'lease ' || l.id AS sold, l.pool, l.price_id, l.notice_seconds,
           coalesce(q.made_at, l.requested_at) AS sold_at
      FROM lease l
      LEFT JOIN quote q ON q.sold = l.id
     WHERE l.reservation_id IS NULL AND l.state <> 'requested'
     UNION ALL
    SELECT 'reservation ' || r.id, r.pool, r.price_id, r.notice_seconds,
           coalesce(q.made_at, r.booked_at)
      FROM reservation r
      LEFT JOIN quote q ON q.sold = r.id
     WHERE r.contract_id IS NULL
)
SELECT s.sold, s.price_id, s.notice_seconds AS sold_notice_seconds, c.id AS scale_id, c.notices,
       c.percents, p.nanos, p.per, p.scale_id AS by_scale, b.nanos AS base_nanos, b.per AS base_per
  FROM sale s
  JOIN price p ON p.id = s.price_id
  LEFT JOIN price b ON b.id = p.base_id
  JOIN LATERAL (SELECT * FROM notice_scale
                 WHERE pool = s.pool AND happened_at <= s.sold_at AND recorded_at <= s.sold_at
                 ORDER BY happened_at DESC, id DESC
                 LIMIT 1) AS c ON true
 ORDER BY s.sold_at, s.sold;
