-- name: insert_usage
-- A report that was sent before inserts nothing.
INSERT INTO usage (id, source, sequence, tenant_id, api_key_id, lease_id, model, request_id,
                   gpu_seconds, input_tokens, cached_input_tokens, output_tokens,
                   delivered_tokens, outcome, happened_at, recorded_at)
VALUES (%(id)s, %(source)s, %(sequence)s, %(tenant_id)s, %(api_key_id)s, %(lease_id)s, %(model)s,
        %(request_id)s, %(gpu_seconds)s, %(input_tokens)s, %(cached_input_tokens)s,
        %(output_tokens)s, %(delivered_tokens)s, %(outcome)s, %(happened_at)s, %(recorded_at)s)
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: insert_usages
-- Many, each as insert_usage would.
INSERT INTO usage (id, source, sequence, tenant_id, api_key_id, lease_id, model, request_id,
                   gpu_seconds, input_tokens, cached_input_tokens, output_tokens,
                   delivered_tokens, outcome, happened_at, recorded_at)
SELECT * FROM unnest(
       %(id)b::uuid[], %(source)b::text[], %(sequence)b::bigint[], %(tenant_id)b::uuid[],
       %(api_key_id)b::uuid[], %(lease_id)b::uuid[], %(model)b::text[], %(request_id)b::text[],
       %(gpu_seconds)b::bigint[], %(input_tokens)b::bigint[], %(cached_input_tokens)b::bigint[],
       %(output_tokens)b::bigint[], %(delivered_tokens)b::bigint[], %(outcome)b::text[],
       %(happened_at)b::timestamptz[], %(recorded_at)b::timestamptz[])
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: insert_charges
-- Many, each as insert_charge would.
INSERT INTO charge (id, usage_id, tenant_id, price_id, quantity, amount_nanos, transfer_id,
                    happened_at, recorded_at)
SELECT * FROM unnest(
       %(id)b::uuid[], %(usage_id)b::uuid[], %(tenant_id)b::uuid[], %(price_id)b::bigint[],
       %(quantity)b::bigint[], %(amount_nanos)b::numeric[], %(transfer_id)b::uuid[],
       %(happened_at)b::timestamptz[], %(recorded_at)b::timestamptz[]);

-- name: insert_charge
INSERT INTO charge (id, usage_id, tenant_id, price_id, quantity, amount_nanos, transfer_id,
                    happened_at, recorded_at)
VALUES (%(id)s, %(usage_id)s, %(tenant_id)s, %(price_id)s, %(quantity)s, %(amount_nanos)s,
        %(transfer_id)s, %(happened_at)s, %(recorded_at)s);

-- name: list_charges
-- Newest first; `before` pages on.
SELECT c.id, c.quantity, c.amount_nanos, p.sku, p.nanos, p.per, p.currency, u.lease_id, u.model,
       u.request_id, u.outcome, u.gpu_seconds, u.input_tokens, u.cached_input_tokens,
       u.output_tokens, u.delivered_tokens, c.usage_id, c.transfer_id, c.happened_at, c.recorded_at
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  JOIN price p ON p.id = c.price_id
 WHERE c.tenant_id = %(tenant_id)s
   AND (%(before)s::timestamptz IS NULL OR c.recorded_at < %(before)s)
   AND (%(request_id)s::text IS NULL OR u.request_id = %(request_id)s)
   AND (%(lease_id)s::uuid IS NULL OR u.lease_id = %(lease_id)s)
 ORDER BY c.recorded_at DESC, p.sku
 LIMIT %(limit)s;

-- name: count_records
SELECT (SELECT count(*) FROM usage)  AS usages,
       (SELECT count(*) FROM charge) AS charges;

-- name: find_wrong_charges
-- A charge must be its quantity at its price, rounded half to even to a nano.
SELECT c.id, c.quantity, c.amount_nanos, p.nanos, p.per
  FROM charge c
  JOIN price p ON p.id = c.price_id
 WHERE abs(c.amount_nanos * p.per * 2 - p.nanos * c.quantity * 2) > p.per
 LIMIT 100;

-- name: find_charges_off_their_transfer
-- The charges that share a transfer must add up to it, and it must be the tenant's own money.
SELECT t.id, t.amount_nanos, sum(c.amount_nanos)::numeric(38,0) AS charged_nanos
  FROM charge c
  JOIN transfer t ON t.id = c.transfer_id
  JOIN account a ON a.id = t.debit_account
 GROUP BY t.id, t.amount_nanos, a.code
HAVING sum(c.amount_nanos) <> t.amount_nanos
    OR count(DISTINCT c.usage_id) <> 1
    OR bool_or(a.code <> 'tenant:' || c.tenant_id || ':wallet')
 LIMIT 100;

-- name: find_uncharged_transfers
-- Money that moved for use must be explained by charges.
SELECT t.id, t.amount_nanos, t.reason
  FROM transfer t
 WHERE t.kind IN ('posted', 'post')
   AND t.reason IN ('tokens', 'lease')
   AND t.amount_nanos > 0
   AND NOT EXISTS (SELECT FROM charge c WHERE c.transfer_id = t.id)
 LIMIT 100;

-- name: find_uncharged_usages
-- Use whose count is known must be charged, each of its counters once.
SELECT u.id, u.source
  FROM usage u
 WHERE (u.gpu_seconds > 0 OR u.input_tokens > 0 OR u.cached_input_tokens > 0 OR u.output_tokens > 0)
   AND u.gpu_seconds + u.input_tokens + u.cached_input_tokens + u.output_tokens
       <> (SELECT coalesce(sum(c.quantity), 0) FROM charge c WHERE c.usage_id = u.id)
 LIMIT 100;

-- name: find_twice_charged_requests
SELECT request_id, tenant_id, count(*) AS times
  FROM usage
 WHERE request_id IS NOT NULL
 GROUP BY request_id, tenant_id
HAVING count(*) > 1
 LIMIT 100;

-- name: check_lease_seconds
-- Ended leases: whole seconds usable by their record, beside the seconds that were billed.
SELECT l.id,
       coalesce(l.gpus * floor(extract(epoch FROM l.stopped_at - l.running_at)), 0)::bigint AS usable_gpu_seconds,
       (SELECT coalesce(sum(u.gpu_seconds), 0) FROM usage u WHERE u.lease_id = l.id)::bigint AS billed_gpu_seconds,
       (SELECT count(*) FROM open_hold o WHERE o.holder = 'lease:' || l.id) AS open_holds
  FROM lease l
  JOIN lease_event e ON e.lease_id = l.id AND e.state = 'ended'
 WHERE e.recorded_at < %(settled_by)s
 ORDER BY l.id;

-- name: sum_lease_charges
SELECT coalesce(sum(c.amount_nanos), 0)::numeric(38,0) AS nanos
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
 WHERE u.source = 'lease:' || %(lease_id)s::text;

-- name: count_gaps
-- Reports that their source numbered and that never came: a gateway counts from 1, a lease from 0.
SELECT coalesce(sum(missing), 0)::bigint AS missing, count(*) FILTER (WHERE missing > 0) AS sources
  FROM (SELECT max(sequence) + CASE WHEN source LIKE 'lease:%%' THEN 1 ELSE 0 END - count(*) AS missing
          FROM usage
         GROUP BY source) AS of_source;
