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
