-- What pages show that looks across rooms. Nothing here writes.

-- name: leases
-- Every lease, with whose it is and what it costs.
SELECT l.id, l.tenant_id, t.name AS tenant, t.kind AS tenant_kind, l.pool, l.gpus, l.tier, l.state,
       coalesce(l.end_reason, l.release_asked) AS end_reason, l.requested_at, l.running_at,
       extract(epoch FROM coalesce(l.stopped_at, CASE WHEN l.state <> 'ended'
                                                      THEN %(now)s::timestamptz END)
                          - l.running_at)::float8 AS ran_seconds,
       (p.nanos * 3600 / p.per / 1000000000)::float8 AS usd_per_gpu_hour
  FROM lease l
  JOIN tenant t ON t.id = l.tenant_id
  JOIN price p ON p.id = l.price_id

-- name: newest
-- What grows when something happens, by topic: each from an index's end.
SELECT (SELECT coalesce(max(record), 0) FROM lease_event) AS leases,
       (SELECT coalesce(max(record), 0) FROM internal_job_event)
         + (SELECT coalesce(max(sequence), 0) FROM pool_event) AS fleet,
       (SELECT coalesce(max(sequence), 0) FROM transfer) AS money,
       (SELECT count(*) FROM replica WHERE state <> 'gone')
         + (SELECT coalesce(max(extract(epoch FROM since)), 0) FROM replica WHERE state <> 'gone')
         AS models,
       (SELECT coalesce(max(record), 0) FROM usage) AS usage;

-- name: earned
-- What was charged since midnight and since the first of the month, both of UTC, in nanos.
SELECT sum(amount_nanos) FILTER (WHERE happened_at >= %(today)s) AS today,
       sum(amount_nanos) AS month
  FROM charge
 WHERE happened_at >= %(month)s;

-- name: overdue
-- Invoices that are neither paid nor void and should be.
SELECT i.number, t.name AS tenant, i.due_on
  FROM invoice i
  JOIN tenant t ON t.id = i.tenant_id
 WHERE i.kind = 'invoice' AND i.due_on < %(today)s
   AND NOT EXISTS (SELECT FROM invoice_event e
                    WHERE e.invoice_id = i.id AND e.state IN ('paid', 'void'))
 ORDER BY i.due_on, i.number
 LIMIT 5;

-- name: reclaims
-- Each time that leases of a pool gave way: how many, and how long until the last was gone.
SELECT l.pool || ' ' || l.noticed_at AS id, l.pool, l.noticed_at, count(*) AS leases,
       sum(l.gpus) AS gpus,
       max(extract(epoch FROM l.stopped_at - l.noticed_at))::float8 AS took_seconds,
       max(l.notice_seconds) AS promised_seconds, count(DISTINCT l.tenant_id) AS tenants,
       (SELECT string_agg(name, ', ') FROM (
           SELECT DISTINCT j.name FROM internal_job_event j
            WHERE j.pool = l.pool AND j.event = 'submitted'
              AND j.happened_at BETWEEN l.noticed_at - interval '1 minute' AND l.noticed_at
            LIMIT 3) AS named) AS needed_by,
       (SELECT coalesce(sum(c.amount_nanos), 0)::float8 FROM credit c
         WHERE c.lease_id = ANY(array_agg(l.id))) AS credited_nanos
  FROM lease l
 WHERE l.end_reason = 'reclaimed' AND l.noticed_at IS NOT NULL
 GROUP BY l.pool, l.noticed_at

-- name: reclaimed_at
-- The leases that gave way at one instant in one pool.
SELECT l.id, t.name AS tenant, l.gpus, l.tier, l.notice_seconds, l.noticed_at, l.stopped_at,
       extract(epoch FROM l.stopped_at - l.noticed_at)::float8 AS took_seconds
  FROM lease l
  JOIN tenant t ON t.id = l.tenant_id
 WHERE l.pool = %(pool)s AND l.noticed_at = %(at)s AND l.end_reason = 'reclaimed'
 ORDER BY l.gpus DESC, l.id
 LIMIT 500;

-- name: jobs_around
-- Internal jobs of a pool that waited or started around an instant: for whom leases gave way.
SELECT job_id, max(name) AS name, max(gpus) AS gpus,
       min(happened_at) FILTER (WHERE event = 'submitted') AS submitted_at,
       min(happened_at) FILTER (WHERE event = 'started') AS started_at
  FROM internal_job_event
 WHERE pool = %(pool)s
   AND happened_at BETWEEN %(at)s::timestamptz - interval '10 minutes' AND %(until)s
 GROUP BY job_id
HAVING min(happened_at) FILTER (WHERE event = 'submitted') <= %(at)s
   AND coalesce(min(happened_at) FILTER (WHERE event = 'started') >= %(at)s, true)
   AND NOT bool_or(event = 'ended' AND happened_at < %(at)s)
 ORDER BY submitted_at
 LIMIT 20;

-- name: credits_of
SELECT c.transfer_id, c.happened_at, c.recorded_at, c.gpus, c.promised_until, c.percent,
       c.amount_nanos::float8 / 1e9 AS usd, c.evidence
  FROM credit c
 WHERE c.lease_id = %(id)s
 ORDER BY c.record;

-- name: tenants
-- Every tenant, with its wallet and what it was charged this month.
SELECT t.id, t.name, t.kind, t.created_at,
       ((a.credits_posted - a.debits_posted) / 1e9)::float8 AS balance_usd,
       (a.debits_pending / 1e9)::float8 AS held_usd,
       coalesce((SELECT sum(c.amount_nanos) / 1e9 FROM charge c
                  WHERE c.tenant_id = t.id AND c.happened_at >= %(month)s), 0)::float8 AS month_usd,
       (SELECT count(*) FROM lease l WHERE l.tenant_id = t.id AND l.state <> 'ended') AS live_leases,
       EXISTS (SELECT FROM suspension s WHERE s.tenant_id = t.id) AS suspended
  FROM tenant t
  LEFT JOIN account a ON a.code = 'tenant:' || t.id || ':wallet'

-- name: charges
-- Every charge, with what it was for. `record` is the order in which they were written.
SELECT c.usage_id, c.record, c.tenant_id, t.name AS tenant, c.happened_at,
       CASE WHEN u.model IS NOT NULL THEN 'model' ELSE coalesce(l.tier, 'reserved') END AS product,
       coalesce(u.model, l.pool, '') AS what, u.lease_id, u.request_id, u.outcome,
       CASE WHEN u.model IS NULL THEN u.gpu_seconds ELSE u.input_tokens + u.output_tokens END AS quantity,
       (c.amount_nanos / 1e9)::float8 AS usd, c.transfer_id
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  JOIN tenant t ON t.id = c.tenant_id
  LEFT JOIN lease l ON l.id = u.lease_id

-- name: charge_lines
-- What a charge is the sum of, each at the version of the price that held.
SELECT p.sku, l.quantity, p.nanos, p.per, l.amount_nanos, p.happened_at AS price_since
  FROM charge_line l
  JOIN price p ON p.id = l.price_id
 WHERE l.usage_id = %(id)s
 ORDER BY p.sku;

-- name: get_charge
SELECT c.*, u.source, u.sequence, u.model, u.request_id, u.lease_id, u.gpu_seconds, u.input_tokens,
       u.output_tokens, u.outcome, u.api_key_id, t.name AS tenant, k.name AS key_name,
       k.hint AS key_hint
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  JOIN tenant t ON t.id = c.tenant_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
 WHERE c.usage_id = %(id)s;

-- name: get_transfer_of
-- The movement of money that a charge was paid by, and the accounts on its two sides.
SELECT t.id, t.kind, t.reason, t.amount_nanos, t.sequence, t.pending_id, t.happened_at,
       t.recorded_at, d.code AS debit, c.code AS credit,
       (SELECT count(*) FROM charge o WHERE o.transfer_id = t.id) AS charges
  FROM transfer t
  JOIN account d ON d.id = t.debit_account
  JOIN account c ON c.id = t.credit_account
 WHERE t.id = %(id)s;

-- name: invoices
-- Every invoice and credit note, with where it stands.
SELECT i.number, i.kind, i.tenant_id, t.name AS tenant, i.starts_at, i.ends_at, i.due_on,
       i.currency, ((i.net_nanos + i.tax_nanos) / 1e9)::float8 AS usd,
       CASE WHEN s.state = 'issued' AND i.due_on < %(today)s AND i.kind = 'invoice' THEN 'overdue'
            ELSE s.state END AS state,
       i.happened_at
  FROM invoice i
  JOIN tenant t ON t.id = i.tenant_id
  JOIN LATERAL (SELECT e.state FROM invoice_event e WHERE e.invoice_id = i.id
                 ORDER BY e.record DESC LIMIT 1) AS s ON true

-- name: period_of_invoice
SELECT starts_at, ends_at FROM invoice WHERE number = %(number)s;

-- name: accounts
-- Every account of the ledger with what stands on it; they add up to nothing.
SELECT a.id, a.code, coalesce(t.name, '') AS tenant, a.prepaid,
       (a.debits_posted / 1e9)::float8 AS debits_usd, (a.credits_posted / 1e9)::float8 AS credits_usd,
       ((a.credits_posted - a.debits_posted) / 1e9)::float8 AS balance_usd,
       ((a.debits_pending + a.credits_pending) / 1e9)::float8 AS pending_usd
  FROM account a
  LEFT JOIN tenant t ON a.code LIKE 'tenant:' || t.id || ':%%'

-- name: transfers
-- Every movement of money on one account.
SELECT t.id, t.sequence, t.kind, t.reason, t.happened_at,
       CASE WHEN t.debit_account = %(account)s THEN c.code ELSE d.code END AS other,
       (CASE WHEN t.debit_account = %(account)s THEN -t.amount_nanos ELSE t.amount_nanos END
        / 1e9)::float8 AS usd
  FROM transfer t
  JOIN account d ON d.id = t.debit_account
  JOIN account c ON c.id = t.credit_account
 WHERE t.debit_account = %(account)s OR t.credit_account = %(account)s

-- name: get_account
SELECT a.id, a.code, ((a.credits_posted - a.debits_posted) / 1e9)::float8 AS balance_usd
  FROM account a
 WHERE a.id = %(id)s;

-- name: last_audit
-- When the auditor was last run from the console, and what it found.
SELECT answered.happened_at, answered.event, answered.after, p.name AS person
  FROM person_change answered
  LEFT JOIN person p ON p.id = answered.person_id
 WHERE answered.action = 'audit.run' AND answered.event <> 'asked'
 ORDER BY answered.record DESC
 LIMIT 1;

-- name: charged_by_day
-- What was charged on each day of UTC since an instant, by product.
SELECT date_trunc('day', c.happened_at, 'UTC') AS day,
       CASE WHEN u.model IS NOT NULL THEN 'model' ELSE coalesce(l.tier, 'reserved') END AS product,
       (sum(c.amount_nanos) / 1e9)::float8 AS usd
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  LEFT JOIN lease l ON l.id = u.lease_id
 WHERE c.happened_at >= %(since)s
 GROUP BY 1, 2;

-- name: live_replicas
-- Replicas that serve, start or leave, and the leases that they run on.
SELECT r.id, r.deployment, r.state, r.detail, r.since, l.pool, l.gpus, l.tier
  FROM replica r
  LEFT JOIN lease l ON l.id = r.id
 WHERE r.state <> 'gone'
 ORDER BY r.deployment, r.since;

-- name: tokens
-- Tokens of each model in steps of ten minutes.
SELECT date_bin('10 minutes', happened_at, 'epoch') AS at, model,
       sum(input_tokens + output_tokens)::float8 AS tokens
  FROM usage
 WHERE model IS NOT NULL AND happened_at >= %(since)s
 GROUP BY 1, 2;
