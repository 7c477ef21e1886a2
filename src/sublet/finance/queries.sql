-- Finance reads the records of every room and writes none of them. Days are those of UTC.

-- name: list_uses
-- GPU-seconds by pool, step and use, of leases, replicas and internal jobs, within [start, end).
WITH spans AS (
    SELECT l.pool, l.gpus,
           CASE WHEN t.kind = 'house' THEN 'model' ELSE l.tier END AS use,
           greatest(min(e.happened_at) FILTER (WHERE e.state = 'running'), %(start)s) AS start,
           least(coalesce(min(e.happened_at) FILTER (WHERE e.state = 'ended'), %(now)s), %(end)s) AS until
      FROM lease l
      JOIN tenant t ON t.id = l.tenant_id
      JOIN lease_event e ON e.lease_id = l.id
     -- A day's grace: what is long over need not be looked at.
     WHERE l.requested_at < %(end)s
       AND NOT (l.state = 'ended' AND l.since < %(start)s::timestamptz - interval '1 day')
     GROUP BY l.id, l.pool, l.gpus, use
    HAVING count(*) FILTER (WHERE e.state = 'running') > 0
    UNION ALL
    SELECT (array_agg(pool ORDER BY record DESC))[1],
           max(gpus) FILTER (WHERE event = 'started'), 'internal',
           greatest(min(happened_at) FILTER (WHERE event = 'started'), %(start)s),
           least(coalesce(min(happened_at) FILTER (WHERE event = 'ended'), %(now)s), %(end)s)
      FROM internal_job_event
     WHERE happened_at < %(end)s
     GROUP BY job_id
    HAVING count(*) FILTER (WHERE event = 'started') > 0
)
SELECT pool, use, at,
       sum(gpus * extract(epoch FROM least(until, at + %(step)s) - greatest(start, at)))::float8
       AS gpu_seconds
  FROM spans,
       generate_series(date_bin(%(step)s, start, 'epoch'), until - interval '1 microsecond',
                       %(step)s) AS at
 WHERE start < until
 GROUP BY pool, use, at;

-- name: list_capacities
-- GPU-seconds by pool and step that were healthy, within [start, end).
WITH steps AS (
    SELECT pool, gpus, greatest(happened_at, %(start)s) AS start,
           least(coalesce(lead(happened_at) OVER (PARTITION BY pool ORDER BY sequence), %(now)s),
                 %(end)s) AS until
      FROM pool_event
)
SELECT pool, at,
       sum(gpus * extract(epoch FROM least(until, at + %(step)s) - greatest(start, at)))::float8
       AS gpu_seconds
  FROM steps,
       generate_series(date_bin(%(step)s, start, 'epoch'), until - interval '1 microsecond',
                       %(step)s) AS at
 WHERE start < until
 GROUP BY pool, at;

-- name: list_charged
-- What was charged by product and pool; of models by their name.
SELECT coalesce(l.pool, r.pool, '') AS pool,
       CASE WHEN u.model IS NOT NULL THEN 'model'
            WHEN u.lease_id IS NOT NULL THEN l.tier
            WHEN r.contract_id IS NOT NULL THEN 'contract'
            ELSE 'reserved' END AS product,
       coalesce(u.model, '') AS model, sum(c.amount_nanos) AS amount_nanos,
       sum(u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.output_tokens
           + u.reasoning_tokens) AS tokens
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  LEFT JOIN lease l ON l.id = u.lease_id
  LEFT JOIN reservation r ON r.id = u.reservation_id
 WHERE c.happened_at >= %(start)s AND c.happened_at < %(end)s
 GROUP BY 1, 2, 3;

-- name: list_credited
-- What was given back for broken promises, by the product that it was of.
SELECT coalesce(l.pool, r.pool) AS pool,
       CASE WHEN r.contract_id IS NOT NULL THEN 'contract'
            WHEN r.id IS NOT NULL THEN 'reserved'
            ELSE l.tier END AS product,
       sum(c.amount_nanos) AS amount_nanos
  FROM credit c
  LEFT JOIN lease l ON l.id = c.lease_id
  LEFT JOIN reservation r ON r.id = c.reservation_id
 WHERE c.happened_at >= %(start)s AND c.happened_at < %(end)s
 GROUP BY 1, 2;

-- name: list_other_revenue
-- What else moved tenants' revenue accounts: shares of resales, minimums of contracts, corrections.
SELECT t.reason,
       sum(CASE WHEN credited.code LIKE 'tenant:%%:revenue' THEN t.amount_nanos ELSE 0 END
           - CASE WHEN debited.code LIKE 'tenant:%%:revenue' THEN t.amount_nanos ELSE 0 END)
       AS amount_nanos
  FROM transfer t
  JOIN account debited ON debited.id = t.debit_account
  JOIN account credited ON credited.id = t.credit_account
 WHERE t.kind IN ('posted', 'post')
   AND t.reason NOT IN ('tokens', 'lease', 'credit')
   AND (debited.code LIKE 'tenant:%%:revenue' OR credited.code LIKE 'tenant:%%:revenue')
   AND t.happened_at >= %(start)s AND t.happened_at < %(end)s
 GROUP BY t.reason;

-- name: list_replica_seconds
-- GPU-seconds of each deployment's replicas by pool: where a model's revenue was earned.
SELECT r.deployment AS model, l.pool,
       sum(l.gpus * extract(epoch FROM
           least(coalesce(e.ended_at, %(now)s), %(end)s) - greatest(e.started_at, %(start)s)))::float8
       AS gpu_seconds
  FROM replica r
  JOIN lease l ON l.id = r.id
  JOIN LATERAL (SELECT min(happened_at) FILTER (WHERE state = 'running') AS started_at,
                       min(happened_at) FILTER (WHERE state = 'ended') AS ended_at
                  FROM lease_event WHERE lease_id = l.id) AS e ON e.started_at IS NOT NULL
 WHERE greatest(e.started_at, %(start)s) < least(coalesce(e.ended_at, %(now)s), %(end)s)
 GROUP BY r.deployment, l.pool;

-- name: list_lots
SELECT document FROM asset_lot ORDER BY name;

-- name: insert_lot
INSERT INTO asset_lot (name, document, happened_at, recorded_at)
VALUES (%(name)s, %(document)s, %(happened_at)s, %(now)s)
    ON CONFLICT (name) DO NOTHING
RETURNING name;

-- name: get_lot
SELECT document FROM asset_lot WHERE name = %(name)s;

-- name: list_changes
SELECT document FROM asset_change ORDER BY lot, effective_on;

-- name: insert_change
INSERT INTO asset_change (lot, effective_on, document, happened_at, recorded_at)
VALUES (%(lot)s, %(effective_on)s, %(document)s, %(happened_at)s, %(now)s)
    ON CONFLICT (lot, effective_on) DO NOTHING
RETURNING lot;

-- name: get_change
SELECT document FROM asset_change WHERE lot = %(lot)s AND effective_on = %(effective_on)s;
