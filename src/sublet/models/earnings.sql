-- name: lock_mark
SELECT record FROM model_use_mark FOR UPDATE;

-- name: set_mark
UPDATE model_use_mark SET record = %(record)s;

-- name: find_end
-- The last row of at most so many that was recorded long enough ago: a lower number may commit later.
SELECT max(record) AS record
  FROM (SELECT record, recorded_at FROM charge WHERE record > %(after)s
         ORDER BY record LIMIT %(most)s) AS next
 WHERE recorded_at < %(before)s;

-- name: sum_up
INSERT INTO model_use (model, minute, requests, input_tokens, output_tokens, nanos)
SELECT coalesce(m.base, u.model), date_trunc('minute', u.happened_at), count(*),
       sum(u.input_tokens + u.cache_read_tokens + u.cache_write_tokens),
       sum(u.output_tokens + u.reasoning_tokens), sum(c.amount_nanos)
  FROM charge c JOIN usage u ON u.id = c.usage_id
  LEFT JOIN model m ON m.name = u.model  -- what was fine-tuned is served by its base's replicas
 WHERE c.record > %(after)s AND c.record <= %(up_to)s AND u.model IS NOT NULL
   AND u.source NOT LIKE 'tuning:%%'  -- on leases of its own
   AND u.source NOT LIKE 'supplier:%%'  -- what was bought outside, our GPUs did not earn
 GROUP BY 1, 2
    ON CONFLICT (model, minute) DO UPDATE
   SET requests = model_use.requests + EXCLUDED.requests,
       input_tokens = model_use.input_tokens + EXCLUDED.input_tokens,
       output_tokens = model_use.output_tokens + EXCLUDED.output_tokens,
       nanos = model_use.nanos + EXCLUDED.nanos;

-- name: list_used
SELECT model, sum(requests)::bigint AS requests, sum(input_tokens)::bigint AS input_tokens,
       sum(output_tokens)::bigint AS output_tokens, sum(nanos) AS nanos
  FROM model_use WHERE minute >= %(since)s AND minute <= %(now)s
 GROUP BY model;

-- name: list_leased
-- GPU-seconds of each deployment's replicas since an instant, by pool and tier of their leases.
SELECT r.deployment, l.pool, l.tier, max(l.gpus) AS gpus,
       sum(l.gpus * extract(epoch FROM coalesce(l.stopped_at, %(now)s)
                                       - greatest(l.running_at, %(since)s)))::double precision AS gpu_seconds
  FROM replica r JOIN lease l ON l.id = r.id
 WHERE l.running_at IS NOT NULL AND coalesce(l.stopped_at, %(now)s) > greatest(l.running_at, %(since)s)
   AND r.since > %(since)s - interval '31 days'
 GROUP BY r.deployment, l.pool, l.tier;
