-- name: list_pools
SELECT * FROM pool ORDER BY name;

-- name: lock_pools
-- Whoever admits a lease or changes a policy waits here for the other: in order of their names, so
-- that two who lock several cannot deadlock.
SELECT *
  FROM pool
 WHERE name = ANY(%(names)s::text[])
 ORDER BY name
   FOR NO KEY UPDATE;

-- name: put_pool
-- Policy is the operator's and stays; only healthy GPUs are observed, and how large nodes are, which
-- stays as it was while there are none.
INSERT INTO pool (name, gpus, notice_seconds, node_gpus)
VALUES (%(name)s, %(gpus)s, %(notice_seconds)s, coalesce(%(node_gpus)s::integer, 1))
    ON CONFLICT (name) DO UPDATE
       SET gpus = EXCLUDED.gpus, node_gpus = coalesce(%(node_gpus)s::integer, pool.node_gpus)
     WHERE (pool.gpus, pool.node_gpus)
           <> (EXCLUDED.gpus, coalesce(%(node_gpus)s::integer, pool.node_gpus))
RETURNING name, gpus, notice_seconds;

-- name: set_policy
UPDATE pool
   SET notice_seconds = %(notice_seconds)s, lendable = %(lendable)s,
       lending_limit = %(lending_limit)s, reserve = %(reserve)s, firm_seconds = %(firm_seconds)s,
       firm_confidence = %(firm_confidence)s, floor_nanos = %(floor_nanos)s,
       credit_percent = %(credit_percent)s,
       quiet_from = %(quiet_from)s, quiet_until = %(quiet_until)s, exclusive = %(exclusive)s
 WHERE name = %(name)s
RETURNING *;

-- name: insert_pool_event
INSERT INTO pool_event (pool, gpus, notice_seconds, policy, happened_at, recorded_at)
VALUES (%(name)s, %(gpus)s, %(notice_seconds)s, %(policy)s, %(now)s, %(now)s);

-- name: insert_internal_job_events
-- The queue is read again and again: what was seen before inserts nothing.
INSERT INTO internal_job_event (job_id, event, pool, gpus, name, happened_at, recorded_at)
SELECT seen.*, %(recorded_at)s::timestamptz
  FROM unnest(%(jobs)s::uuid[], %(events)s::text[], %(pools)s::text[], %(gpus)s::integer[],
              %(names)s::text[], %(happened)s::timestamptz[]) AS seen
    ON CONFLICT DO NOTHING;

-- name: list_pool_events
SELECT pool, gpus, notice_seconds, happened_at FROM pool_event ORDER BY pool, sequence;

-- name: list_internal_spans
-- One row a job: when it was submitted, started and ended, as far as it got. What was seen of it may
-- differ: what it was given from what it wanted, both of which can be changed while it waits; and
-- Slurm shows a gang of which some nodes have finished with the GPUs of the others alone.
SELECT job_id, max(gpus) AS wanted,
       coalesce(max(gpus) FILTER (WHERE event = 'started'), max(gpus)) AS gpus,
       (array_agg(pool ORDER BY record DESC))[1] AS pool,
       (array_agg(name ORDER BY record DESC))[1] AS name,
       min(happened_at) FILTER (WHERE event = 'submitted') AS submitted_at,
       min(happened_at) FILTER (WHERE event = 'started')   AS started_at,
       min(happened_at) FILTER (WHERE event = 'ended')     AS ended_at
  FROM internal_job_event
 GROUP BY job_id
 ORDER BY submitted_at, job_id;

-- name: put_demand_samples
-- Looks at one slot are joined to the worst of them, however often and by whom they are kept.
INSERT INTO demand_sample (pool, slot, gpus, running, pending)
SELECT *
  FROM unnest(%(pools)s::text[], %(slots)s::timestamptz[], %(gpus)s::integer[], %(running)s::integer[], %(pending)s::integer[])
    ON CONFLICT (pool, slot) DO UPDATE
   SET gpus = least(demand_sample.gpus, EXCLUDED.gpus),
       running = greatest(demand_sample.running, EXCLUDED.running),
       pending = greatest(demand_sample.pending, EXCLUDED.pending);

-- name: list_demand_samples
SELECT pool, array_agg(extract(epoch FROM slot)::bigint ORDER BY slot) AS slots,
       array_agg(gpus ORDER BY slot) AS gpus, array_agg(running ORDER BY slot) AS running,
       array_agg(pending ORDER BY slot) AS pending
  FROM demand_sample
 WHERE slot >= %(since)s
 GROUP BY pool;

-- name: forget_demand_samples
DELETE FROM demand_sample WHERE slot < %(before)s;

-- name: list_jobs_at
-- Internal jobs that held or waited for GPUs of a pool at an instant, the newest first.
SELECT job_id, gpus, submitted_at, started_at, ended_at
  FROM (SELECT job_id, coalesce(max(gpus) FILTER (WHERE event = 'started'), max(gpus)) AS gpus,
               min(happened_at) FILTER (WHERE event = 'submitted') AS submitted_at,
               min(happened_at) FILTER (WHERE event = 'started')   AS started_at,
               min(happened_at) FILTER (WHERE event = 'ended')     AS ended_at
          FROM internal_job_event
         WHERE pool = %(pool)s
         GROUP BY job_id) AS job
 WHERE submitted_at <= %(at)s AND (ended_at IS NULL OR ended_at > %(at)s)
 ORDER BY submitted_at DESC, job_id
 LIMIT 100;

-- name: insert_coming
INSERT INTO coming_capacity (id, pool, name, gpus, ready_at, happened_at, recorded_at)
VALUES (%(id)s, %(pool)s, %(name)s, %(gpus)s, %(ready_at)s, %(now)s, %(now)s);

-- name: get_coming
SELECT * FROM coming_capacity WHERE id = %(id)s ORDER BY record DESC LIMIT 1;

-- name: list_coming
SELECT *
  FROM (SELECT DISTINCT ON (id) * FROM coming_capacity ORDER BY id, record DESC) AS last
 WHERE gpus > 0
 ORDER BY ready_at, id;
