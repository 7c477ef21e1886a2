-- name: put_supplier
INSERT INTO supplier (name, dialect, url, project, enabled, first_token_ms)
VALUES (%(name)s, %(dialect)s, %(url)s, %(project)s, %(enabled)s, %(first_token_ms)s)
    ON CONFLICT (name) DO UPDATE
   SET dialect = EXCLUDED.dialect, url = EXCLUDED.url, project = EXCLUDED.project,
       enabled = EXCLUDED.enabled, first_token_ms = EXCLUDED.first_token_ms;

-- name: list_suppliers
SELECT name, dialect, url, project, enabled, first_token_ms, sealed_key IS NOT NULL AS has_key
  FROM supplier ORDER BY name;

-- name: set_key
UPDATE supplier SET sealed_key = %(sealed)s, key_set_at = %(now)s WHERE name = %(name)s RETURNING name;

-- name: list_keys
SELECT name, sealed_key FROM supplier WHERE sealed_key IS NOT NULL;

-- name: set_enabled
UPDATE supplier SET enabled = %(enabled)s WHERE name = %(name)s RETURNING name;

-- name: drop_models
DELETE FROM supplier_model WHERE supplier = %(supplier)s AND model <> ALL (%(models)s::text[]);

-- name: put_model
INSERT INTO supplier_model (supplier, model, deployment)
VALUES (%(supplier)s, %(model)s, %(deployment)s)
    ON CONFLICT (supplier, model) DO UPDATE SET deployment = EXCLUDED.deployment;

-- name: list_models
SELECT supplier, model, deployment FROM supplier_model ORDER BY supplier, model;

-- name: insert_price
INSERT INTO supplier_price (supplier, model, tier, input_nanos, cache_read_nanos, cache_write_nanos,
                            cache_write_long_nanos, output_nanos, reasoning_nanos, per,
                            happened_at, recorded_at)
VALUES (%(supplier)s, %(model)s, %(tier)s, %(input)s, %(cache_read)s, %(cache_write)s,
        %(cache_write_long)s, %(output)s, %(reasoning)s, %(per)s, %(happened_at)s, %(now)s)
RETURNING id;

-- name: list_prices
-- Which holds at an instant: one a source and tier.
SELECT DISTINCT ON (supplier, model, tier) *
  FROM supplier_price WHERE happened_at <= %(at)s
 ORDER BY supplier, model, tier, happened_at DESC, id DESC;

-- name: list_all_prices
SELECT * FROM supplier_price
 WHERE (%(supplier)s::text IS NULL OR supplier = %(supplier)s)
 ORDER BY supplier, model, tier, happened_at, id;

-- name: drop_limits
DELETE FROM quota_limit WHERE scope = %(scope)s AND id <> ALL (%(ids)s::bigint[]);

-- name: put_limit
INSERT INTO quota_limit (scope, model, tier, measure, span, zone, asked, amount)
VALUES (%(scope)s, %(model)s, %(tier)s, %(measure)s, %(span)s, %(zone)s, %(asked)s, %(amount)s)
    ON CONFLICT (scope, model, tier, measure, span) DO UPDATE
   SET zone = EXCLUDED.zone, asked = EXCLUDED.asked, amount = EXCLUDED.amount
RETURNING id;

-- name: list_limits
SELECT id, scope, model, tier, measure, span, zone, asked, amount FROM quota_limit ORDER BY id;

-- name: lock_limits
-- In id order, so that two gateways cannot wait both ways; and what time it is, once they are ours.
SELECT id, scope, model, tier, measure, span, zone, asked, amount, told_amount, told_until, others,
       others_until, clock_timestamp() AS now
  FROM quota_limit WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: read_limits
SELECT id, scope, model, tier, measure, span, zone, asked, amount, told_amount, told_until, others,
       others_until, clock_timestamp() AS now
  FROM quota_limit ORDER BY id;

-- name: read_shares
SELECT limit_id, holder, instance, held, told, seen_at
  FROM quota_share WHERE limit_id = ANY (%(ids)s::bigint[]);

-- name: read_uses
SELECT limit_id, slot, amount FROM quota_use WHERE limit_id = ANY (%(ids)s::bigint[]);

-- name: limits_of_holder
-- What an earlier run of a name held, to be given back.
SELECT limit_id FROM quota_share
 WHERE holder = %(holder)s AND instance <> %(instance)s ORDER BY limit_id;

-- name: put_share
INSERT INTO quota_share (limit_id, holder, instance, held, told, seen_at)
VALUES (%(limit_id)s, %(holder)s, %(instance)s, %(held)s, %(told)s, %(seen_at)s)
    ON CONFLICT (limit_id, holder) DO UPDATE
   SET instance = EXCLUDED.instance, held = EXCLUDED.held, told = EXCLUDED.told,
       seen_at = EXCLUDED.seen_at;

-- name: drop_share
DELETE FROM quota_share WHERE limit_id = %(limit_id)s AND holder = %(holder)s;

-- name: put_use
INSERT INTO quota_use (limit_id, slot, amount) VALUES (%(limit_id)s, %(slot)s, %(amount)s)
    ON CONFLICT (limit_id, slot) DO UPDATE SET amount = EXCLUDED.amount;

-- name: drop_uses
DELETE FROM quota_use WHERE limit_id = %(limit_id)s AND slot = ANY (%(slots)s::timestamptz[]);

-- name: put_told
UPDATE quota_limit
   SET told_amount = %(told_amount)s, told_until = %(told_until)s, others = %(others)s,
       others_until = %(others_until)s
 WHERE id = %(id)s;

-- name: put_rest
INSERT INTO supplier_rest (supplier, model, until, why)
VALUES (%(supplier)s, %(model)s, %(until)s, %(why)s)
    ON CONFLICT (supplier, model) DO UPDATE
   SET why = CASE WHEN EXCLUDED.until > supplier_rest.until THEN EXCLUDED.why ELSE supplier_rest.why END,
       until = greatest(supplier_rest.until, EXCLUDED.until);

-- name: drop_rests
DELETE FROM supplier_rest WHERE supplier = %(supplier)s;

-- name: list_rests
SELECT supplier, model, until, why FROM supplier_rest WHERE until > %(now)s ORDER BY supplier, model;

-- name: put_terms
INSERT INTO buying (deployment, enabled, margin_percent)
VALUES (%(deployment)s, %(enabled)s, %(margin_percent)s)
    ON CONFLICT (deployment) DO UPDATE
   SET enabled = EXCLUDED.enabled, margin_percent = EXCLUDED.margin_percent;

-- name: list_terms
SELECT deployment, enabled, margin_percent FROM buying ORDER BY deployment;

-- name: insert_purchase
-- One that was handed over before inserts nothing.
INSERT INTO purchase (id, supplier, model, deployment, tenant_id, request_id, supplier_request,
                      asked_tier, tier, price_id, input_tokens, cache_read_tokens,
                      cache_write_tokens, cache_write_long_tokens, output_tokens, reasoning_tokens,
                      amount_nanos, outcome, basis, doubt, first_token_ms, transfer_id,
                      happened_at, recorded_at)
VALUES (%(id)s, %(supplier)s, %(model)s, %(deployment)s, %(tenant_id)s, %(request_id)s,
        %(supplier_request)s, %(asked_tier)s, %(tier)s, %(price_id)s, %(input)s, %(cache_read)s,
        %(cache_write)s, %(cache_write_long)s, %(output)s, %(reasoning)s, %(amount_nanos)s,
        %(outcome)s, %(basis)s, %(doubt)s, %(first_token_ms)s, %(transfer_id)s, %(happened_at)s,
        %(now)s);

-- name: find_purchases
SELECT id FROM purchase WHERE id = ANY (%(ids)s::uuid[]);

-- name: list_purchases
SELECT * FROM purchase
 WHERE (%(supplier)s::text IS NULL OR supplier = %(supplier)s)
   AND (%(before)s::bigint IS NULL OR record < %(before)s)
   AND (%(request_id)s::text IS NULL OR request_id = %(request_id)s)
 ORDER BY record DESC LIMIT %(limit)s;

-- name: list_bought
-- What an invoice should say of a time.
SELECT * FROM purchase
 WHERE supplier = %(supplier)s AND happened_at >= %(start)s AND happened_at < %(end)s
 ORDER BY record;

-- name: sum_bought
SELECT supplier, count(*) AS purchases, coalesce(sum(amount_nanos), 0) AS nanos
  FROM purchase WHERE happened_at >= %(since)s GROUP BY supplier ORDER BY supplier;

-- name: sum_deployments
SELECT deployment, sum(amount_nanos) AS nanos,
       sum(input_tokens + cache_read_tokens + cache_write_tokens + cache_write_long_tokens
           + output_tokens + reasoning_tokens) AS tokens
  FROM purchase WHERE happened_at >= %(start)s AND happened_at < %(end)s
 GROUP BY deployment;

-- name: audit_purchases
-- Each purchase beside the price that it names, and the one that held for what it was.
SELECT p.id, p.supplier, p.model, p.tier, p.price_id, p.amount_nanos, p.transfer_id, p.happened_at,
       p.input_tokens, p.cache_read_tokens, p.cache_write_tokens, p.cache_write_long_tokens,
       p.output_tokens, p.reasoning_tokens,
       r.supplier AS priced_supplier, r.model AS priced_model, r.tier AS priced_tier,
       r.happened_at AS priced_at, r.input_nanos, r.cache_read_nanos, r.cache_write_nanos,
       r.cache_write_long_nanos, r.output_nanos, r.reasoning_nanos, r.per
  FROM purchase p LEFT JOIN supplier_price r ON r.id = p.price_id
 ORDER BY p.record;

-- name: audit_transfers
-- Money moved for purchases, and what they cost: a look across, which only reads.
SELECT coalesce(t.id, p.transfer_id) AS id, t.amount_nanos AS moved, p.nanos AS bought,
       debited.code AS debit, credited.code AS credit, p.supplier, p.suppliers
  FROM (SELECT id, amount_nanos, debit_account, credit_account
          FROM transfer WHERE reason = 'purchase') AS t
  FULL JOIN (SELECT transfer_id, sum(amount_nanos) AS nanos, min(supplier) AS supplier,
                    count(DISTINCT supplier) AS suppliers
               FROM purchase WHERE amount_nanos > 0 GROUP BY transfer_id) AS p ON p.transfer_id = t.id
  LEFT JOIN account debited ON debited.id = t.debit_account
  LEFT JOIN account credited ON credited.id = t.credit_account
 WHERE t.amount_nanos IS DISTINCT FROM p.nanos OR p.suppliers > 1
    OR debited.code IS DISTINCT FROM 'supplier:' || p.supplier || ':cost'
    OR credited.code IS DISTINCT FROM 'supplier:' || p.supplier || ':payable';
