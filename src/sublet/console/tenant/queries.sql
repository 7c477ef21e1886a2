-- What a tenant's pages list. Each names the tenant; nothing here writes.

-- name: leases
SELECT l.id, l.pool, l.gpus, l.tier, l.state, coalesce(l.end_reason, l.release_asked) AS end_reason,
       l.requested_at, l.ends_at,
       extract(epoch FROM coalesce(l.stopped_at, CASE WHEN l.state <> 'ended'
                                                      THEN %(now)s::timestamptz END)
                          - l.running_at)::float8 AS ran_seconds,
       (p.nanos * 3600 / p.per / 1000000000)::float8 AS usd_per_gpu_hour
  FROM lease l
  JOIN price p ON p.id = l.price_id
 WHERE l.tenant_id = %(tenant_id)s

-- name: files
SELECT id, name, purpose, bytes, created_at, expires_at
  FROM stored_file
 WHERE tenant_id = %(tenant_id)s AND deleted_at IS NULL AND listed

-- name: batches
SELECT b.id, b.dialect, b.endpoint, b.state, array_to_string(b.models, ', ') AS models,
       CASE WHEN b.state = 'ended' THEN b.total ELSE l.lines END AS lines,
       CASE WHEN b.state = 'ended' THEN b.answered ELSE l.answered END AS answered,
       b.created_at, b.ended_at, b.expires_at
  FROM batch b
  LEFT JOIN LATERAL (SELECT count(*)::integer AS lines,
                            (count(*) FILTER (WHERE n.state = 'answered'))::integer AS answered
                       FROM batch_line n WHERE n.batch_id = b.id AND b.state <> 'ended') l ON true
 WHERE b.tenant_id = %(tenant_id)s

-- name: model_standing
-- Models that this tenant may use, and how many replicas answer.
SELECT d.name, count(r.id) FILTER (WHERE r.state = 'ready') AS ready,
       count(r.id) FILTER (WHERE r.state = 'starting') AS starting
  FROM deployment d
  LEFT JOIN model m ON m.name = d.name
  LEFT JOIN replica r ON r.deployment = d.name
 WHERE d.wanted AND (m.owner_id IS NULL OR m.owner_id = %(tenant_id)s)
 GROUP BY d.name
 ORDER BY d.name;

-- name: incidents
-- What went otherwise than one would like: leases of this tenant's that were taken back or broke,
-- with what was credited for it.
SELECT e.lease_id, e.happened_at, e.reason, l.gpus, l.pool, l.tier,
       (SELECT sum(c.amount_nanos) FROM credit c WHERE c.lease_id = l.id) AS credited_nanos
  FROM lease_event e
  JOIN lease l ON l.id = e.lease_id
 WHERE l.tenant_id = %(tenant_id)s AND e.happened_at >= %(since)s
   AND e.state = 'draining' AND e.reason IN ('reclaimed', 'start_failed', 'node_lost', 'credit_exhausted', 'shutdown')
 ORDER BY e.happened_at DESC
 LIMIT 100;
