-- name: insert_admitted
-- Admitted leases, and on record that each was asked for and admitted. The callers chose the ids. A
-- repeat inserts nothing and returns no row.
WITH new AS (
    INSERT INTO lease (id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload,
                       max_seconds, requested_at, since, resumable, resumes, firm_seconds,
                       credit_percent, list_price_id, reservation_id, until, exclusive,
                       state, version, first_requested_at)
    SELECT asked.*, 'admitted', 2,
           (SELECT coalesce(first_requested_at, requested_at)
              FROM lease
             WHERE id = asked.resumes)
      FROM unnest(%(id)s::uuid[], %(tenant_id)s::uuid[], %(pool)s::text[], %(gpus)s::integer[],
                  %(tier)s::text[], %(notice_seconds)s::integer[], %(price_id)s::bigint[],
                  %(workload)s::jsonb[], %(max_seconds)s::integer[],
                  %(requested_at)s::timestamptz[], %(since)s::timestamptz[],
                  %(resumable)s::boolean[], %(resumes)s::uuid[], %(firm_seconds)s::integer[],
                  %(credit_percent)s::integer[], %(list_price_id)s::bigint[],
                  %(reservation_id)s::uuid[], %(until)s::timestamptz[],
                  %(exclusive)s::boolean[])
               AS asked(id, tenant_id, pool, gpus, tier, notice_seconds, price_id, workload,
                        max_seconds, requested_at, since, resumable, resumes, firm_seconds,
                        credit_percent, list_price_id, reservation_id, until, exclusive)
        ON CONFLICT (id) DO NOTHING
    RETURNING id, requested_at, since
), noted AS (
    INSERT INTO lease_event (lease_id, version, state, happened_at, recorded_at)
    SELECT id, 1, 'requested', requested_at, %(now)s::timestamptz FROM new
    UNION ALL
    SELECT id, 2, 'admitted', since, %(now)s FROM new
)
SELECT id FROM new;

-- name: save_move
-- Guarded by the version: of two who move one lease, the second finds nothing to update.
UPDATE lease
   SET state = %(state)s, since = %(since)s, version = %(version)s, end_reason = %(end_reason)s,
       running_at = %(running_at)s, stopped_at = %(stopped_at)s, ends_at = %(ends_at)s,
       stops_at = %(stops_at)s, exit_code = %(exit_code)s, detail = %(detail)s,
       paid_until = coalesce(%(paid_until)s, paid_until), noticed_at = %(noticed_at)s
 WHERE id = %(id)s AND version = %(version)s - 1
RETURNING id;

-- name: save_moves
-- As save_move and insert_event do, of many that do not begin to run.
WITH moved AS (
    UPDATE lease
       SET state = new.state, since = new.since, version = new.version,
           end_reason = new.reason, stopped_at = new.stopped_at, stops_at = new.stops_at,
           noticed_at = new.noticed_at, exit_code = new.exit_code, detail = new.detail
      FROM unnest(%(ids)s::uuid[], %(versions)s::integer[], %(states)s::text[],
                  %(since)s::timestamptz[], %(reasons)s::text[], %(stopped)s::timestamptz[],
                  %(stops)s::timestamptz[], %(noticed)s::timestamptz[], %(codes)s::integer[],
                  %(details)s::text[])
           AS new(id, version, state, since, reason, stopped_at, stops_at, noticed_at, exit_code,
                  detail)
     WHERE lease.id = new.id AND lease.version = new.version - 1
    RETURNING lease.id, lease.version, lease.state, lease.end_reason, lease.since
), noted AS (
    INSERT INTO lease_event (lease_id, version, state, reason, happened_at, recorded_at)
    SELECT id, version, state, end_reason, since, %(now)s::timestamptz FROM moved
)
SELECT id FROM moved;

-- name: insert_event
INSERT INTO lease_event (lease_id, version, state, reason, happened_at, recorded_at)
VALUES (%(lease_id)s, %(version)s, %(state)s, %(reason)s, %(happened_at)s, %(recorded_at)s);

-- name: get_lease
SELECT * FROM lease WHERE id = %(id)s;

-- name: get_leases
SELECT * FROM lease WHERE id = ANY(%(ids)s::uuid[]);

-- name: list_live
-- All of a lease but its workload, which may be large and is needed once, at its start.
SELECT id, tenant_id, pool, gpus, tier, notice_seconds, price_id, max_seconds, requested_at, state,
       since, version, end_reason, release_asked, running_at, stopped_at, ends_at, stops_at,
       paid_until, exit_code, detail, firm_seconds, credit_percent, list_price_id, reservation_id,
       until, noticed_at, checkpoint_at, resumable, resumes, exclusive
  FROM lease
 WHERE state <> 'ended'
 ORDER BY requested_at, id;

-- name: list_changed
-- Live leases that were written by transactions which had not ended at the last look, or all; beside
-- each, or alone, how many are live and the oldest transaction that has not ended. In one statement,
-- so that all of it is of one instant.
SELECT now.live, now.horizon, l.*
  FROM (SELECT count(*) AS live, pg_snapshot_xmin(pg_current_snapshot())::xid::text AS horizon
          FROM lease
         WHERE state <> 'ended') AS now
  LEFT JOIN LATERAL (
       SELECT id, tenant_id, pool, gpus, tier, notice_seconds, price_id, max_seconds, requested_at,
              state, since, version, end_reason, release_asked, running_at, stopped_at, ends_at,
              stops_at, paid_until, exit_code, detail, firm_seconds, credit_percent, list_price_id,
              reservation_id, until, noticed_at, checkpoint_at, resumable, resumes, exclusive
         FROM lease
        WHERE state <> 'ended'
          AND (%(since)s::text IS NULL OR age(lease.xmin) <= age(%(since)s::text::xid))
       ) AS l ON true;

-- name: list_of_tenant
SELECT *
  FROM lease
 WHERE (%(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s)
   AND (%(before)s::timestamptz IS NULL OR requested_at < %(before)s)
   AND (NOT %(live)s OR state <> 'ended')
 ORDER BY requested_at DESC, id
 LIMIT %(limit)s;

-- name: list_events
SELECT version, state, reason, happened_at, recorded_at
  FROM lease_event
 WHERE lease_id = %(id)s
 ORDER BY version;

-- name: ask_release
-- The first who asks decides the reason.
UPDATE lease
   SET release_asked = %(reason)s
 WHERE id = %(id)s AND release_asked IS NULL AND state IN ('admitted', 'provisioning', 'running')
RETURNING id;

-- name: ask_all
UPDATE lease
   SET release_asked = %(reason)s
 WHERE id = ANY(%(ids)s::uuid[]) AND release_asked IS NULL
   AND state IN ('admitted', 'provisioning', 'running')
RETURNING id;

-- name: list_paused
-- All of a lease but its workload. One that was reclaimed more than once has the place of its first
-- request.
SELECT id, tenant_id, pool, gpus, tier, notice_seconds, price_id, max_seconds, requested_at, state,
       since, version, end_reason, release_asked, running_at, stopped_at, ends_at, stops_at,
       paid_until, exit_code, detail, firm_seconds, credit_percent, list_price_id, reservation_id,
       until, noticed_at, checkpoint_at, resumable, resumes, exclusive
  FROM lease
 WHERE resumable AND state = 'ended' AND end_reason = 'reclaimed'
 ORDER BY coalesce(first_requested_at, requested_at), id;

-- name: end_pause
UPDATE lease
   SET resumable = false
 WHERE id = %(id)s AND resumable AND state = 'ended' AND end_reason = 'reclaimed'
RETURNING id;

-- name: lock_paused
SELECT id
  FROM lease
 WHERE id = ANY(%(ids)s::uuid[]) AND resumable AND state = 'ended' AND end_reason = 'reclaimed'
 ORDER BY id
   FOR NO KEY UPDATE;

-- name: end_pauses
UPDATE lease SET resumable = false WHERE id = ANY(%(ids)s::uuid[]);

-- name: get_standings
-- What leases and windows hold of pools: all of it from indexes. Nothing is promised any more to
-- those that are leaving. Aside is what windows that run or are about to have and do not use.
SELECT asked.pool, stands.*
  FROM unnest(%(pools)s::text[], %(soon)s::timestamptz[]) AS asked(pool, soon)
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(gpus), 0) AS held,
              coalesce(sum(gpus) FILTER (
                  WHERE state <> 'draining'
                    AND (firm_seconds IS NULL
                         OR firm_seconds > 0
                            AND (running_at IS NULL
                                 OR running_at + firm_seconds * interval '1 second' > %(now)s))
              ), 0) AS promised,
              (SELECT coalesce(sum(greatest(r.gpus - r.lost_gpus - coalesce(drawn.gpus, 0)
                                            - coalesce(listed.gpus, 0)
                                            - coalesce(before.gpus, 0), 0)), 0)
                 FROM reservation r
                 LEFT JOIN LATERAL (  -- the next step of a contract takes over what it has now
                      SELECT b.gpus - b.lost_gpus AS gpus
                        FROM reservation b
                       WHERE b.contract_id = r.contract_id AND b.ends_at = r.starts_at
                         AND r.starts_at > %(now)s AND NOT b.ended AND NOT b.unpaid
                      ) AS before ON true
                 LEFT JOIN LATERAL (
                      SELECT sum(l.gpus) AS gpus
                        FROM lease l
                       WHERE l.reservation_id = r.id
                         AND l.state IN ('admitted', 'provisioning', 'running', 'draining')
                      ) AS drawn ON true
                 LEFT JOIN LATERAL (
                      SELECT sum(s.gpus) AS gpus
                        FROM resale s
                       WHERE s.reservation_id = r.id AND s.ended_at IS NULL AND r.starts_at <= %(now)s
                      ) AS listed ON true
                WHERE r.pool = asked.pool AND NOT r.ended AND NOT r.unpaid
                  AND r.starts_at <= asked.soon AND r.ends_at > %(now)s) AS aside,
              (SELECT coalesce(sum(greatest(s.gpus - coalesce(used.gpus, 0), 0)), 0)
                 FROM reservation r
                 JOIN resale s ON s.reservation_id = r.id AND s.ended_at IS NULL
                 LEFT JOIN LATERAL (
                      SELECT sum(u.gpus) AS gpus
                        FROM resale_use u
                        JOIN lease l ON l.id = u.lease_id
                       WHERE u.resale_id = s.id
                         AND l.state IN ('admitted', 'provisioning', 'running', 'draining')
                      ) AS used ON true
                WHERE r.pool = asked.pool AND NOT r.ended AND NOT r.unpaid
                  AND r.starts_at <= %(now)s AND r.ends_at > %(now)s) AS returned,
              EXISTS (SELECT FROM reservation r
                       WHERE r.pool = asked.pool AND NOT r.ended AND r.ends_at > %(now)s) AS windows
         FROM lease
        WHERE lease.pool = asked.pool AND lease.state IN ('admitted', 'provisioning', 'running', 'draining')
       ) AS stands;

-- name: list_open_blocks
SELECT lease_id, block, hold_id
  FROM lease_block
 WHERE lease_id = ANY(%(ids)s::uuid[]) AND NOT settled
 ORDER BY lease_id, block;

-- name: list_next_blocks
-- The first block of each lease that is not held yet, and the price of its GPU-seconds.
SELECT l.id, p.nanos, p.per, p.currency,
       coalesce((SELECT max(block) + 1 FROM lease_block WHERE lease_id = l.id), 0) AS block
  FROM lease l
  JOIN price p ON p.id = l.price_id
 WHERE l.id = ANY(%(ids)s::uuid[]);

-- name: insert_blocks
INSERT INTO lease_block (lease_id, block, hold_id)
SELECT * FROM unnest(%(leases)s::uuid[], %(blocks)s::integer[], %(holds)s::uuid[])
    ON CONFLICT DO NOTHING;

-- name: close_blocks
UPDATE lease_block
   SET settled = true
  FROM unnest(%(leases)s::uuid[], %(blocks)s::integer[]) AS over(lease_id, block)
 WHERE lease_block.lease_id = over.lease_id AND lease_block.block = over.block;

-- name: extend_paid
UPDATE lease
   SET paid_until = paid.until
  FROM unnest(%(ids)s::uuid[], %(until)s::timestamptz[]) AS paid(id, until)
 WHERE lease.id = paid.id AND lease.state = 'running';

-- name: list_unsettled
-- Ended leases that still have an unsettled block: a crash came between the two.
SELECT DISTINCT l.*
  FROM lease l
  JOIN lease_block b ON b.lease_id = l.id AND NOT b.settled
 WHERE l.state = 'ended';

-- name: list_moves
-- Every move of every lease, in order, beside the lease as it stands; to be read through a cursor.
SELECT coalesce(e.lease_id, l.id) AS lease_id, e.version, e.state, e.happened_at,
       l.version AS stands_at, l.state AS stands, l.running_at, l.stopped_at
  FROM lease_event e
  FULL JOIN lease l ON l.id = e.lease_id
 ORDER BY 1, e.version;

-- name: list_occupancy
-- From when to when each lease's workload held its GPUs; null while it does.
SELECT l.id, l.pool, l.gpus, t.kind AS tenant_kind, e.started_at, e.ended_at
  FROM lease l
  JOIN tenant t ON t.id = l.tenant_id
  JOIN (SELECT lease_id,
               min(happened_at) FILTER (WHERE state = 'running') AS started_at,
               min(happened_at) FILTER (WHERE state = 'ended') AS ended_at
          FROM lease_event
         GROUP BY lease_id) AS e ON e.lease_id = l.id
 WHERE e.started_at IS NOT NULL;

-- name: list_reclaimed
SELECT * FROM lease WHERE end_reason = 'reclaimed' AND tier = %(tier)s;

-- name: last_fence
-- What starts is given a minute from when it starts, and may be waited for before.
SELECT max(coalesce(stops_at,
                    coalesce(paid_until, since + make_interval(secs => %(provisioning_seconds)s + 60))
                    + make_interval(secs => notice_seconds))) AS fence
  FROM lease
 WHERE state IN ('provisioning', 'running', 'draining');

-- name: insert_reservation
INSERT INTO reservation (id, tenant_id, pool, gpus, starts_at, ends_at, notice_seconds,
                         credit_percent, price_id, list_price_id, workload, booked_at,
                         contract_id, block_seconds)
VALUES (%(id)s, %(tenant_id)s, %(pool)s, %(gpus)s, %(starts_at)s, %(ends_at)s,
        %(notice_seconds)s, %(credit_percent)s, %(price_id)s, %(list_price_id)s, %(workload)s,
        %(booked_at)s, %(contract_id)s, %(block_seconds)s)
    ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: get_reservation
SELECT *, workload IS NOT NULL AS has_workload FROM reservation WHERE id = %(id)s;

-- name: lock_reservation
SELECT *, workload IS NOT NULL AS has_workload
  FROM reservation
 WHERE id = %(id)s
   FOR UPDATE;

-- name: list_reservations
SELECT *, workload IS NOT NULL AS has_workload
  FROM reservation
 WHERE %(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s
 ORDER BY booked_at DESC, id
 LIMIT %(limit)s;

-- name: list_open_reservations
SELECT *, workload IS NOT NULL AS has_workload
  FROM reservation
 WHERE NOT ended AND (%(pool)s::text IS NULL OR pool = %(pool)s)
 ORDER BY starts_at, id;

-- name: sum_drawn_gpus
SELECT coalesce(sum(gpus), 0) AS gpus
  FROM lease
 WHERE reservation_id = %(id)s AND state IN ('admitted', 'provisioning', 'running', 'draining');

-- name: set_asked
UPDATE reservation SET asked_at = %(asked_at)s WHERE id = %(id)s;

-- name: lose_gpus
UPDATE reservation
   SET lost_gpus = least(gpus, lost_gpus + %(gpus)s), asked_at = NULL
 WHERE id = %(id)s;

-- name: end_reservation
UPDATE reservation SET ended = true WHERE id = %(id)s;

-- name: insert_reservation_block
INSERT INTO reservation_block (reservation_id, block, hold_id)
VALUES (%(reservation_id)s, %(block)s, %(hold_id)s)
    ON CONFLICT DO NOTHING;

-- name: list_reservation_blocks
SELECT block, hold_id
  FROM reservation_block
 WHERE reservation_id = %(reservation_id)s AND NOT settled
 ORDER BY block;

-- name: close_reservation_block
UPDATE reservation_block SET settled = true
 WHERE reservation_id = %(reservation_id)s AND block = %(block)s;

-- name: list_reclaimed_of_reservation
-- But for those of which it is on record that a contract's promise was broken.
SELECT *
  FROM lease
 WHERE reservation_id = %(id)s AND end_reason = 'reclaimed'
   AND NOT EXISTS (SELECT FROM contract_break b WHERE b.lease_id = lease.id)
 ORDER BY id;

-- name: set_started
UPDATE reservation SET started = true WHERE id = %(id)s;

-- name: list_firm
-- Which GPUs leases were promised, and until when; null: until they end.
SELECT gpus,
       coalesce(running_at, %(now)s::timestamptz) + make_interval(secs => firm_seconds) AS until
  FROM lease
 WHERE pool = %(pool)s AND tier = 'on_demand' AND state IN ('admitted', 'provisioning', 'running')
   AND (firm_seconds IS NULL
        OR running_at IS NULL OR running_at + make_interval(secs => firm_seconds) > %(now)s);

-- name: set_unpaid
UPDATE reservation SET unpaid = %(unpaid)s WHERE id = %(id)s AND unpaid <> %(unpaid)s;

-- name: count_reservation_blocks
SELECT count(*) AS blocks FROM reservation_block WHERE reservation_id = %(id)s;

-- name: list_steps
SELECT *, workload IS NOT NULL AS has_workload
  FROM reservation
 WHERE contract_id = %(id)s
 ORDER BY starts_at;

-- name: move_end
UPDATE reservation SET ends_at = %(ends_at)s WHERE id = %(id)s;

-- name: drop_step
-- Of a contract that ends before it: nothing of it was held or charged.
DELETE FROM reservation WHERE id = %(id)s;

-- name: drop_blocks
DELETE FROM reservation_block WHERE reservation_id = %(id)s;

-- name: list_deliveries
SELECT reservation_id, gpus, happened_at
  FROM contract_delivery
 WHERE contract_id = %(contract_id)s
 ORDER BY happened_at, gpus;

-- name: list_breaks
SELECT id, reservation_id, lease_id, gpus, happened_at
  FROM contract_break
 WHERE contract_id = %(contract_id)s
 ORDER BY happened_at, id;

-- name: insert_break
-- Once; and not what was credited all at once, as it was before there were such records.
INSERT INTO contract_break (id, reservation_id, contract_id, lease_id, gpus, happened_at, recorded_at)
SELECT %(id)s, %(reservation_id)s, %(contract_id)s, %(lease_id)s, %(gpus)s, %(at)s, %(now)s
 WHERE NOT EXISTS (SELECT FROM credit WHERE transfer_id = %(id)s)
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: list_running_steps
-- Steps of contracts that run, the contract that was signed first first; how many of their GPUs were
-- there at once so far, null: nobody looked yet; and how many GPUs of their pool leases hold that are
-- no contract's.
SELECT r.id, r.contract_id, r.pool, r.gpus, r.lost_gpus, r.unpaid, r.starts_at,
       (SELECT max(d.gpus) FROM contract_delivery d WHERE d.reservation_id = r.id) AS delivered,
       (SELECT coalesce(sum(l.gpus), 0)
          FROM lease l
         WHERE l.pool = r.pool AND l.tier <> 'contract'
           AND l.state IN ('admitted', 'provisioning', 'running', 'draining')) AS held
  FROM reservation r
  JOIN contract c ON c.id = r.contract_id
 WHERE NOT r.ended AND r.starts_at <= %(now)s AND r.ends_at > %(now)s
 ORDER BY c.signed_at, c.id, r.starts_at;

-- name: insert_delivery
INSERT INTO contract_delivery (reservation_id, contract_id, gpus, happened_at, recorded_at)
VALUES (%(id)s, %(contract_id)s, %(gpus)s, %(at)s, %(now)s)
    ON CONFLICT DO NOTHING;

-- name: list_deliveries_of
SELECT gpus, happened_at
  FROM contract_delivery
 WHERE reservation_id = %(id)s
 ORDER BY happened_at, gpus;

-- name: get_delivered
SELECT max(gpus) AS gpus FROM contract_delivery WHERE reservation_id = %(id)s;

-- name: insert_contract
INSERT INTO contract (id, tenant_id, pool, name, starts_at, ends_at, signed_at, notice_seconds,
                      minimum_nanos, shortfall_percent, notice_days, recall_days, renewal_days,
                      late_percent, late_days, missing_percent)
VALUES (%(id)s, %(tenant_id)s, %(pool)s, %(name)s, %(starts_at)s, %(ends_at)s, %(signed_at)s,
        %(notice_seconds)s, %(minimum_nanos)s, %(shortfall_percent)s, %(notice_days)s,
        %(recall_days)s, %(renewal_days)s, %(late_percent)s, %(late_days)s, %(missing_percent)s)
    ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: get_contract
SELECT * FROM contract WHERE id = %(id)s;

-- name: lock_contract
SELECT * FROM contract WHERE id = %(id)s FOR UPDATE;

-- name: list_contracts
SELECT *
  FROM contract
 WHERE %(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s
 ORDER BY signed_at DESC, id;

-- name: list_open_contracts
SELECT * FROM contract WHERE NOT closed ORDER BY ends_at, id;

-- name: end_contract
UPDATE contract SET ends_at = %(ends_at)s, ended_by = %(ended_by)s WHERE id = %(id)s;

-- name: close_contract
UPDATE contract SET closed = true WHERE id = %(id)s;

-- name: note_checkpoint
UPDATE lease
   SET checkpoint_at = greatest(checkpoint_at, %(at)s::timestamptz)
 WHERE id = %(id)s AND state IN ('running', 'draining')
RETURNING id;

-- name: count_reclaimed
SELECT pool, tenant_id, count(*)::integer AS times
  FROM lease
 WHERE end_reason = 'reclaimed' AND noticed_at >= %(since)s
 GROUP BY pool, tenant_id;

-- name: any_open
SELECT EXISTS (SELECT FROM reservation WHERE NOT ended)
       OR EXISTS (SELECT FROM contract WHERE NOT closed)
       OR EXISTS (SELECT FROM resale_use WHERE NOT paid) AS any;

-- name: insert_resale
INSERT INTO resale (id, reservation_id, gpus, limit_nanos, share_percent, listed_at)
VALUES (%(id)s, %(reservation_id)s, %(gpus)s, %(limit_nanos)s, %(share_percent)s, %(listed_at)s);

-- name: get_resale
SELECT s.*, r.tenant_id
  FROM resale s
  JOIN reservation r ON r.id = s.reservation_id
 WHERE s.id = %(id)s;

-- name: list_resales
SELECT s.*
  FROM resale s
  JOIN reservation r ON r.id = s.reservation_id
 WHERE %(tenant_id)s::uuid IS NULL OR r.tenant_id = %(tenant_id)s
 ORDER BY s.listed_at DESC, s.id;

-- name: end_resale
-- The first instant at which it was taken back stands.
UPDATE resale SET ended_at = %(ended_at)s WHERE id = %(id)s AND ended_at IS NULL;

-- name: sum_listed_gpus
SELECT coalesce(sum(gpus), 0) AS gpus
  FROM resale
 WHERE reservation_id = %(id)s AND ended_at IS NULL;

-- name: list_free_resales
-- What is on sale of windows that run, and not in use by a lease.
SELECT s.*, s.gpus - coalesce(used.gpus, 0) AS free
  FROM reservation r
  JOIN resale s ON s.reservation_id = r.id AND s.ended_at IS NULL
  LEFT JOIN LATERAL (
       SELECT sum(u.gpus) AS gpus
         FROM resale_use u
         JOIN lease l ON l.id = u.lease_id
        WHERE u.resale_id = s.id
          AND l.state IN ('admitted', 'provisioning', 'running', 'draining')) AS used ON true
 WHERE r.pool = %(pool)s AND NOT r.ended AND r.starts_at <= %(now)s AND r.ends_at > %(now)s
 ORDER BY s.id;

-- name: insert_resale_use
INSERT INTO resale_use (resale_id, lease_id, gpus)
VALUES (%(resale_id)s, %(lease_id)s, %(gpus)s);

-- name: list_resale_uses
SELECT s.*, u.lease_id, u.gpus AS used_gpus, u.paid
  FROM resale_use u
  JOIN resale s ON s.id = u.resale_id
 WHERE NOT %(unpaid)s OR NOT u.paid
 ORDER BY u.lease_id, u.resale_id;

-- name: set_resale_paid
UPDATE resale_use SET paid = true WHERE resale_id = %(resale_id)s AND lease_id = %(lease_id)s;

-- name: list_asked
-- What customers asked for and got lately: at which price per GPU-hour, for how long, and how long
-- it ran until it ended or was taken back.
SELECT l.requested_at AS asked_at, p.nanos * 3600 / p.per AS nanos_hour, l.max_seconds AS seconds,
       l.gpus, l.tier <> 'interruptible' AS firm,
       coalesce(extract(epoch FROM coalesce(l.stopped_at, %(now)s) - l.running_at), 0) / 3600
           AS ran_hours,
       (l.end_reason IS NOT DISTINCT FROM 'reclaimed')::integer AS reclaimed
  FROM lease l
  JOIN tenant t ON t.id = l.tenant_id AND t.kind = 'customer'
  JOIN price p ON p.id = l.price_id
 WHERE l.pool = %(pool)s AND l.requested_at >= %(since)s AND l.reservation_id IS NULL
   AND l.resumes IS NULL
 UNION ALL
SELECT r.booked_at, p.nanos * 3600 / p.per, extract(epoch FROM r.ends_at - r.starts_at)::bigint,
       r.gpus, true, 0, 0
  FROM reservation r
  JOIN price p ON p.id = r.price_id
 WHERE r.pool = %(pool)s AND r.booked_at >= %(since)s AND r.contract_id IS NULL;

-- name: insert_webhook
INSERT INTO webhook (lease_id, url) VALUES (%(lease_id)s, %(url)s) ON CONFLICT DO NOTHING;

-- name: copy_webhooks
INSERT INTO webhook (lease_id, url)
SELECT pair.after, webhook.url
  FROM unnest(%(before)s::uuid[], %(after)s::uuid[]) AS pair(before, after)
  JOIN webhook ON webhook.lease_id = pair.before
    ON CONFLICT DO NOTHING;

-- name: claim_webhooks
-- Of leases that have their notice. Whoever dies with one leaves it to be taken again later.
UPDATE webhook
   SET attempts = attempts + 1, next_at = %(until)s
 WHERE lease_id IN (
       SELECT w.lease_id
         FROM webhook w
         JOIN (SELECT o.lease_id,
                      row_number() OVER (PARTITION BY l.tenant_id ORDER BY l.since, l.id) AS place
                 FROM webhook o
                 JOIN lease l ON l.id = o.lease_id AND l.stops_at > %(now)s
                WHERE o.outcome IS NULL AND (o.next_at IS NULL OR o.next_at <= %(now)s)) AS due
              USING (lease_id)
        WHERE due.place <= %(each)s AND w.outcome IS NULL
          AND (w.next_at IS NULL OR w.next_at <= %(now)s)
        LIMIT %(limit)s
          FOR UPDATE OF w SKIP LOCKED)
RETURNING lease_id, url, attempts;

-- name: close_webhooks
-- Of leases that ended by themselves, or whose notice is over.
UPDATE webhook w
   SET outcome = 'given_up', detail = coalesce(w.detail, 'the lease is over')
  FROM lease l
 WHERE l.id = w.lease_id AND w.outcome IS NULL AND l.state = 'ended'
   AND (l.stops_at IS NULL OR l.stops_at <= %(now)s);

-- name: note_webhook
UPDATE webhook
   SET outcome = %(outcome)s, next_at = %(next_at)s, detail = %(detail)s
 WHERE lease_id = %(id)s AND outcome IS NULL;

-- name: get_webhook
SELECT url, attempts, outcome, detail FROM webhook WHERE lease_id = %(id)s;
