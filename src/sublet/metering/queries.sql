-- name: insert_usage
-- A report that was sent before inserts nothing.
INSERT INTO usage (id, source, sequence, tenant_id, api_key_id, lease_id, model, request_id,
                   gpu_seconds, input_tokens, cache_read_tokens, cache_write_tokens,
                   output_tokens, reasoning_tokens, delivered_tokens, outcome,
                   happened_at, recorded_at, reservation_id)
VALUES (%(id)s, %(source)s, %(sequence)s, %(tenant_id)s, %(api_key_id)s, %(lease_id)s, %(model)s,
        %(request_id)s, %(gpu_seconds)s, %(input_tokens)s, %(cache_read_tokens)s,
        %(cache_write_tokens)s, %(output_tokens)s, %(reasoning_tokens)s, %(delivered_tokens)s,
        %(outcome)s, %(happened_at)s, %(recorded_at)s, %(reservation_id)s)
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: insert_charge
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos,
                    transfer_id, happened_at, recorded_at)
VALUES (%(usage_id)s, %(tenant_id)s, %(price_ids)s, %(quantities)s, %(amounts)s,
        %(amount_nanos)s, %(transfer_id)s, %(happened_at)s, %(recorded_at)s);

-- name: insert_lease_usages
INSERT INTO usage (id, source, sequence, tenant_id, lease_id, gpu_seconds, outcome, happened_at,
                   recorded_at)
SELECT new.*, %(now)s::timestamptz
  FROM unnest(%(ids)s::uuid[], %(sources)s::text[], %(sequences)s::bigint[], %(tenants)s::uuid[],
              %(leases)s::uuid[], %(seconds)s::bigint[], %(outcomes)s::text[],
              %(happened)s::timestamptz[]) AS new
    ON CONFLICT DO NOTHING;

-- name: insert_lease_charges
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos,
                    transfer_id, happened_at, recorded_at)
SELECT id, tenant_id, ARRAY[price_id], ARRAY[quantity], ARRAY[amount], amount, transfer_id,
       happened_at, %(now)s::timestamptz
  FROM unnest(%(ids)s::uuid[], %(tenants)s::uuid[], %(prices)s::bigint[], %(quantities)s::bigint[],
              %(amounts)s::numeric[], %(transfers)s::uuid[], %(happened)s::timestamptz[])
       AS new(id, tenant_id, price_id, quantity, amount, transfer_id, happened_at);

-- name: create_incoming
-- The lines of reports on their way in; the order of its columns is that of `report`.
CREATE TEMP TABLE IF NOT EXISTS incoming (
    id uuid, source text, sequence bigint, tenant_id uuid, api_key_id uuid, lease_id uuid,
    model text, request_id text, gpu_seconds bigint, input_tokens bigint,
    cache_read_tokens bigint, cache_write_tokens bigint, output_tokens bigint,
    reasoning_tokens bigint, delivered_tokens bigint, outcome text, happened_at timestamptz,
    price_ids bigint[], quantities bigint[], amounts numeric[], amount_nanos numeric
) ON COMMIT DELETE ROWS;

-- name: copy_incoming
COPY incoming FROM STDIN;

-- name: add_usages
-- Every staged report that was not sent before.
INSERT INTO usage (id, source, sequence, tenant_id, api_key_id, lease_id, model, request_id,
                   gpu_seconds, input_tokens, cache_read_tokens, cache_write_tokens,
                   output_tokens, reasoning_tokens, delivered_tokens, outcome,
                   happened_at, recorded_at)
SELECT id, source, sequence, tenant_id, api_key_id, lease_id, model, request_id,
       gpu_seconds, input_tokens, cache_read_tokens, cache_write_tokens,
       output_tokens, reasoning_tokens, delivered_tokens, outcome,
       happened_at, %(now)s
  FROM incoming
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: add_charges
-- Of all that is staged, or `only` of these. A charge of nothing names no transfer.
INSERT INTO charge (usage_id, tenant_id, price_ids, quantities, amounts, amount_nanos,
                    transfer_id, happened_at, recorded_at)
SELECT i.id, i.tenant_id, i.price_ids, i.quantities, i.amounts, i.amount_nanos,
       CASE WHEN i.amount_nanos > 0 THEN t.transfer_id END, i.happened_at, %(now)s
  FROM incoming i
  LEFT JOIN unnest(%(tenants)b::uuid[], %(transfers)b::uuid[]) AS t(tenant_id, transfer_id)
       ON t.tenant_id = i.tenant_id
 WHERE %(only)s::uuid[] IS NULL OR i.id = ANY(%(only)s::uuid[]);

-- name: list_charges
-- Newest first, a line a SKU; `before` pages on, and the limit is of whole charges.
SELECT c.usage_id, l.quantity, l.amount_nanos, p.sku, p.nanos, p.per, p.currency, c.lease_id,
       c.model, c.request_id, c.outcome, c.gpu_seconds, c.input_tokens, c.cache_read_tokens,
       c.cache_write_tokens, c.output_tokens, c.reasoning_tokens, c.delivered_tokens,
       c.transfer_id, c.record, c.happened_at, c.recorded_at
  FROM (SELECT c.usage_id, c.price_ids, c.quantities, c.amounts, c.transfer_id, c.record,
               c.happened_at, c.recorded_at, u.lease_id, u.model, u.request_id, u.outcome,
               u.gpu_seconds, u.input_tokens, u.cache_read_tokens, u.cache_write_tokens,
               u.output_tokens, u.reasoning_tokens, u.delivered_tokens
          FROM charge c
          JOIN usage u ON u.id = c.usage_id
         WHERE c.tenant_id = %(tenant_id)s
           AND (%(before)s::bigint IS NULL OR c.record < %(before)s)
           AND (%(request_id)s::text IS NULL OR u.request_id = %(request_id)s)
           AND (%(lease_id)s::uuid IS NULL OR u.lease_id = %(lease_id)s)
         ORDER BY c.record DESC
         LIMIT %(limit)s) AS c,
       unnest(c.price_ids, c.quantities, c.amounts) AS l(price_id, quantity, amount_nanos)
  JOIN price p ON p.id = l.price_id
 ORDER BY c.record DESC, p.sku;

-- name: sum_lines
-- Every line of every charge once: how many are not their quantity at their price (rounded half to
-- even to a nano), or name no price; and fingerprints of what they add up to.
-- (GROUP BY keeps what a price is doubled to from being worked out for every line.)
SELECT count(*) FILTER (WHERE (abs(l.amount_nanos * p.twice_per - p.twice_nanos * l.quantity) <= p.per)
                              IS NOT TRUE) AS wrong,
       coalesce(sum(l.quantity * uuid_hash_extended(l.usage_id, uuid_hash_extended(l.tenant_id, %(seed)s))::numeric), 0) AS quantities,
       coalesce(sum(l.amount_nanos * hashint8extended(l.record, %(seed)s)), 0) AS amounts
  FROM (SELECT usage_id, tenant_id, record, unnest(price_ids) AS price_id,
               unnest(quantities) AS quantity, unnest(amounts) AS amount_nanos
          FROM charge) AS l
  LEFT JOIN (SELECT id, 2 * nanos AS twice_nanos, 2::numeric * per AS twice_per, per::numeric AS per
               FROM price GROUP BY id) AS p ON p.id = l.price_id;

-- name: sum_charges
-- Every charge once: fingerprints of what it is as a whole, and of what its transfer must be.
SELECT count(*) AS charges,
       coalesce(sum(amount_nanos * hashint8extended(record, %(seed)s)), 0) AS amounts,
       coalesce(sum(amount_nanos * uuid_hash_extended(
           coalesce(transfer_id, '00000000-0000-0000-0000-000000000000'),
           uuid_hash_extended(tenant_id, %(seed)s))), 0) AS transfers,
       -- What the fingerprints, in which it counts nothing, do not show:
       count(*) FILTER (WHERE 0 = ALL (quantities)) AS unused,
       count(*) FILTER (WHERE amount_nanos = 0 AND transfer_id IS NOT NULL) AS unpaid
  FROM charge;

-- name: sum_usages
-- Every usage once: a fingerprint of what must be charged, and how many name what is not there.
SELECT count(*) AS usages,
       coalesce(sum((u.gpu_seconds + u.input_tokens + u.cache_read_tokens + u.cache_write_tokens
                     + u.output_tokens + u.reasoning_tokens)
                    * uuid_hash_extended(u.id, uuid_hash_extended(u.tenant_id, %(seed)s))::numeric), 0) AS quantities,
       count(*) FILTER (WHERE t.id IS NULL
                           OR (u.api_key_id IS NOT NULL AND k.id IS NULL)
                           OR (u.lease_id IS NOT NULL AND l.id IS NULL)) AS strays
  FROM usage u
  LEFT JOIN tenant t ON t.id = u.tenant_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
  LEFT JOIN lease l ON l.id = u.lease_id;

-- name: sum_moved
-- Every transfer for use once: a fingerprint of it and of the tenant whose money it was, or whose
-- debt the house bears. (GROUP BY: see above, of accounts and their codes.)
SELECT coalesce(sum(t.amount_nanos * uuid_hash_extended(t.id, uuid_hash_extended(
           coalesce(d.tenant_id, CASE WHEN d.lost THEN c.tenant_id END,
                    '00000000-0000-0000-0000-000000000000'), %(seed)s))), 0) AS transfers
  FROM transfer t
  LEFT JOIN (SELECT id, code = 'house:bad_debt' AS lost,
                    substring(code FROM '^tenant:([0-9a-f-]{36}):wallet$')::uuid AS tenant_id
               FROM account GROUP BY id) AS d ON d.id = t.debit_account
  LEFT JOIN (SELECT id, substring(code FROM '^tenant:([0-9a-f-]{36}):revenue$')::uuid AS tenant_id
               FROM account GROUP BY id) AS c ON c.id = t.credit_account
 WHERE t.kind IN ('posted', 'post') AND t.reason IN ('tokens', 'lease') AND t.amount_nanos > 0;

-- name: find_wrong_charges
-- A line must be its quantity at its price, rounded half to even to a nano, and a charge the
-- sum of its lines.
SELECT l.usage_id, p.sku, l.quantity, l.amount_nanos::numeric(38,0) AS amount_nanos, p.nanos, p.per
  FROM charge_line l
  JOIN price p ON p.id = l.price_id
 WHERE (abs(l.amount_nanos * p.per * 2 - p.nanos * l.quantity * 2) <= p.per) IS NOT TRUE
UNION ALL
SELECT c.usage_id, 'all lines together', 1, c.amount_nanos, added.nanos, 1
  FROM charge c,
       LATERAL (SELECT coalesce(sum(amount), 0) AS nanos FROM unnest(c.amounts) AS amount) AS added
 WHERE c.amount_nanos <> added.nanos
 LIMIT 100;

-- name: find_charges_off_their_transfer
-- The charges that share a transfer must add up to it; it must have moved money for use, and the
-- tenant's own, or what the house bears where that was not to be had.
SELECT t.id, t.amount_nanos, sum(c.amount_nanos)::numeric(38,0) AS charged_nanos
  FROM charge c
  JOIN transfer t ON t.id = c.transfer_id
  JOIN account d ON d.id = t.debit_account
  JOIN account r ON r.id = t.credit_account
 GROUP BY t.id, t.kind, t.reason, t.amount_nanos, d.code, r.code
HAVING sum(c.amount_nanos) <> t.amount_nanos
    OR t.kind NOT IN ('posted', 'post') OR t.reason NOT IN ('tokens', 'lease')
    OR bool_or(d.code <> 'tenant:' || c.tenant_id || ':wallet'
               AND (d.code <> 'house:bad_debt' OR r.code <> 'tenant:' || c.tenant_id || ':revenue'))
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
  LEFT JOIN charge c ON c.usage_id = u.id
 WHERE u.gpu_seconds + u.input_tokens + u.cache_read_tokens + u.cache_write_tokens
       + u.output_tokens + u.reasoning_tokens
       <> coalesce((SELECT sum(quantity) FROM unnest(c.quantities) AS quantity), 0)
 LIMIT 100;

-- name: count_charges_for_nothing
-- Charges of no quantity, whose usage is not there or another tenant's.
SELECT count(*) AS number
  FROM charge c
  LEFT JOIN usage u ON u.id = c.usage_id AND u.tenant_id = c.tenant_id
 WHERE 0 = ALL (c.quantities) AND u.id IS NULL;

-- name: count_unpaid_strays
-- Charges of no money that name a transfer that is not there.
SELECT count(*) AS number
  FROM charge c
 WHERE c.amount_nanos = 0 AND c.transfer_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM transfer t WHERE t.id = c.transfer_id);

-- name: find_strays
-- What names something that is not there. No foreign key says so, for their speed.
SELECT 'usage' AS record, u.id, 'tenant' AS missing
  FROM usage u WHERE NOT EXISTS (SELECT FROM tenant t WHERE t.id = u.tenant_id)
UNION ALL
SELECT 'usage', u.id, 'API key'
  FROM usage u WHERE u.api_key_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM api_key k WHERE k.id = u.api_key_id)
UNION ALL
SELECT 'usage', u.id, 'lease'
  FROM usage u WHERE u.lease_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM lease l WHERE l.id = u.lease_id)
UNION ALL
SELECT 'charge', c.usage_id, 'usage'
  FROM charge c LEFT JOIN usage u ON u.id = c.usage_id
 WHERE u.id IS NULL OR u.tenant_id <> c.tenant_id
UNION ALL
SELECT 'charge', c.usage_id, 'transfer'
  FROM charge c WHERE c.transfer_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM transfer t WHERE t.id = c.transfer_id)
UNION ALL
SELECT 'charge', c.usage_id, 'transfer'
  FROM charge c WHERE c.transfer_id IS NULL AND c.amount_nanos <> 0
UNION ALL
SELECT 'charge', l.usage_id, 'price'
  FROM charge_line l WHERE NOT EXISTS (SELECT FROM price p WHERE p.id = l.price_id)
 LIMIT 100;

-- name: find_twice_charged_requests
SELECT request_id, tenant_id, count(*) AS times
  FROM usage
 WHERE request_id IS NOT NULL
 GROUP BY request_id, tenant_id
HAVING count(*) > 1
 LIMIT 100;

-- name: count_ended_leases
SELECT count(*) AS number
  FROM lease l
  JOIN lease_event e ON e.lease_id = l.id AND e.state = 'ended'
 WHERE e.recorded_at < %(settled_by)s;

-- name: find_wrong_lease_seconds
-- Ended leases whose whole seconds usable by their record are not those that were billed, or that
-- still hold money. (Without LIMIT, for which all usages would be summed again for each lease.)
WITH billed AS (
    SELECT lease_id, sum(gpu_seconds) AS gpu_seconds
      FROM usage
     WHERE lease_id IS NOT NULL
     GROUP BY lease_id
), held AS (
    SELECT substring(holder FROM 7) AS lease_id, count(*) AS holds
      FROM open_hold
     WHERE holder LIKE 'lease:%%'
     GROUP BY holder
), ended AS (
    SELECT l.id,
           -- A reservation pays for the leases on it.
           CASE WHEN l.reservation_id IS NOT NULL THEN 0
                ELSE coalesce(l.gpus * floor(extract(epoch FROM l.stopped_at - l.running_at)), 0) END::bigint AS usable_gpu_seconds,
           coalesce(b.gpu_seconds, 0)::bigint AS billed_gpu_seconds,
           coalesce(h.holds, 0) AS open_holds
      FROM lease l
      JOIN lease_event e ON e.lease_id = l.id AND e.state = 'ended'
      LEFT JOIN billed b ON b.lease_id = l.id
      LEFT JOIN held h ON h.lease_id = l.id::text
     WHERE e.recorded_at < %(settled_by)s
)
SELECT *
  FROM ended
 WHERE usable_gpu_seconds <> billed_gpu_seconds OR open_holds > 0;

-- name: sum_lease_charges
SELECT coalesce(sum(c.amount_nanos), 0)::numeric(38,0) AS nanos
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
 WHERE u.source = 'lease:' || %(lease_id)s::text;

-- name: count_gaps
-- Reports that their source numbered and that never came: a gateway counts from 1, others from 0.
-- Those of a batch have the numbers of its lines, of which not each uses anything.
SELECT coalesce(sum(missing), 0)::bigint AS missing, count(*) FILTER (WHERE missing > 0) AS sources
  FROM (SELECT max(sequence) + CASE WHEN source LIKE 'lease:%%' OR source LIKE 'reservation:%%' THEN 1 ELSE 0 END - count(*) AS missing
          FROM usage
         WHERE source NOT LIKE 'batch:%%'
         GROUP BY source) AS of_source;

-- name: list_credits
-- Money that was given back, and whose accounts it moved between.
SELECT t.id, t.amount_nanos, paid.code AS from_code, got.code AS to_code
  FROM transfer t
  JOIN account paid ON paid.id = t.debit_account
  JOIN account got ON got.id = t.credit_account
 WHERE t.reason = 'credit';

-- name: list_trades
-- What customers paid for leases, a row a day (UTC) and pool, in order.
SELECT (u.happened_at AT TIME ZONE 'UTC')::date AS day, l.pool,
       sum(u.gpu_seconds)::bigint AS gpu_seconds, sum(c.amount_nanos) AS amount_nanos
  FROM usage u
  JOIN charge c ON c.usage_id = u.id
  JOIN lease l ON l.id = u.lease_id
  JOIN tenant t ON t.id = u.tenant_id AND t.kind = 'customer'
 WHERE u.happened_at >= %(since)s
   AND u.gpu_seconds > 0
 GROUP BY 1, 2
 ORDER BY 1, 2;

-- name: list_leased
-- What ran on leases, a row a pool and slot of time, and what customers paid for it.
SELECT l.pool,
       (floor(extract(epoch FROM u.happened_at) / %(slot)s) * %(slot)s)::bigint AS slot,
       sum(u.gpu_seconds)::bigint AS gpu_seconds,
       coalesce(sum(u.gpu_seconds) FILTER (WHERE t.kind = 'customer'), 0)::bigint AS paid_seconds,
       coalesce(sum(c.amount_nanos) FILTER (WHERE t.kind = 'customer'), 0) AS paid_nanos
  FROM usage u
  JOIN lease l ON l.id = u.lease_id
  JOIN tenant t ON t.id = u.tenant_id
  LEFT JOIN charge c ON c.usage_id = u.id
 WHERE u.happened_at >= %(since)s
 GROUP BY 1, 2
 ORDER BY 1, 2;
-- name: insert_credit
INSERT INTO credit (transfer_id, tenant_id, lease_id, reservation_id, gpus, happened_at,
                    promised_until, percent, price_id, amount_nanos, evidence, recorded_at)
VALUES (%(transfer_id)s, %(tenant_id)s, %(lease_id)s, %(reservation_id)s, %(gpus)s, %(happened_at)s,
        %(promised_until)s, %(percent)s, %(price_id)s, %(amount_nanos)s, %(evidence)s,
        %(recorded_at)s);

-- name: list_credit_records
SELECT *
  FROM credit
 WHERE %(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s
 ORDER BY record DESC
 LIMIT %(limit)s;

-- name: find_wrong_reservations
-- Windows that are over: all of their seconds are charged, used or not, and nothing is held.
SELECT r.id, r.gpus * extract(epoch FROM r.ends_at - r.starts_at)::bigint AS reserved_gpu_seconds,
       coalesce(b.gpu_seconds, 0)::bigint AS billed_gpu_seconds, coalesce(h.holds, 0) AS open_holds
  FROM reservation r
  LEFT JOIN (SELECT reservation_id, sum(gpu_seconds) AS gpu_seconds
               FROM usage WHERE reservation_id IS NOT NULL GROUP BY reservation_id) AS b
         ON b.reservation_id = r.id
  LEFT JOIN (SELECT substring(holder FROM 13) AS reservation_id, count(*) AS holds
               FROM open_hold WHERE holder LIKE 'reservation:%%' GROUP BY holder) AS h
         ON h.reservation_id = r.id::text
 WHERE r.ended
   AND (r.gpus * extract(epoch FROM r.ends_at - r.starts_at)::bigint <> coalesce(b.gpu_seconds, 0)
        OR coalesce(h.holds, 0) > 0);

-- name: count_reservations
SELECT count(*) AS number FROM reservation WHERE ended;

-- name: find_uncredited_windows
-- Leases on reservations that gave way before their window was over, and that neither a credit nor
-- the record of a contract names.
SELECT l.id
  FROM lease l
  JOIN reservation r ON r.id = l.reservation_id
  JOIN lease_event e ON e.lease_id = l.id AND e.state = 'ended'
  JOIN price p ON p.id = l.price_id
 WHERE l.end_reason = 'reclaimed' AND e.recorded_at < %(settled_by)s AND r.credit_percent > 0
   AND coalesce(l.noticed_at, l.since) <= r.ends_at - interval '1 second'
   AND NOT EXISTS (SELECT FROM credit c WHERE c.lease_id = l.id)
   AND NOT EXISTS (SELECT FROM contract_break b WHERE b.lease_id = l.id);

-- name: sum_contract
-- What was charged for the steps of a contract, and to reach its minimum.
SELECT (SELECT coalesce(sum(c.amount_nanos), 0)
          FROM reservation r
          JOIN usage u ON u.reservation_id = r.id
          JOIN charge c ON c.usage_id = u.id
         WHERE r.contract_id = %(id)s)
       + (SELECT coalesce(sum(amount_nanos), 0) FROM transfer WHERE id = %(minimum)s) AS nanos;

-- name: list_shares
-- What tenants were given for GPUs of theirs that others used.
SELECT t.id, t.amount_nanos, got.code AS to_code
  FROM transfer t
  JOIN account got ON got.id = t.credit_account
 WHERE t.reason = 'resale' AND t.kind = 'posted';

-- name: insert_tagging
INSERT INTO tagging (subject, tenant_id, tags, happened_at, recorded_at)
VALUES (%(subject)s, %(tenant_id)s, %(tags)s, %(now)s, %(now)s);

-- name: get_tagging
SELECT tags FROM tagging WHERE subject = %(subject)s ORDER BY happened_at DESC, record DESC LIMIT 1;

-- name: get_owner_of_tagged
SELECT tenant_id
  FROM (SELECT id, tenant_id FROM api_key WHERE id = %(subject)s AND tenant_id IS NOT NULL
         UNION ALL SELECT id, tenant_id FROM lease WHERE id = %(subject)s
         UNION ALL SELECT id, tenant_id FROM reservation WHERE id = %(subject)s) AS found
 WHERE %(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s;
