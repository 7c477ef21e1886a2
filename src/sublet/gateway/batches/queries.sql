-- name: insert_batch
INSERT INTO batch (id, tenant_id, api_key_id, dialect, endpoint, input_file, state, metadata,
                   output_seconds, created_at, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(api_key_id)s, %(dialect)s, %(endpoint)s, %(input_file)s,
        'validating', %(metadata)s, %(output_seconds)s, %(now)s, %(expires_at)s);

-- name: count_open
SELECT count(*) AS n FROM batch
 WHERE tenant_id = %(tenant_id)s AND state IN ('validating', 'in_progress', 'finalizing');

-- name: find_reader
-- A batch that still reads a file.
SELECT id, dialect FROM batch
 WHERE input_file = %(file_id)s AND state IN ('validating', 'in_progress', 'finalizing')
 LIMIT 1;

-- name: get_batch
SELECT * FROM batch WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND dialect = %(dialect)s;

-- name: list_batches
-- Newest first, from behind one, or before one.
SELECT b.* FROM batch b
  LEFT JOIN batch a ON a.id = %(edge)s AND a.tenant_id = b.tenant_id
 WHERE b.tenant_id = %(tenant_id)s AND b.dialect = %(dialect)s
   AND (%(edge)s::uuid IS NULL
        OR CASE WHEN %(newer)s THEN (b.created_at, b.id) > (a.created_at, a.id)
                ELSE (b.created_at, b.id) < (a.created_at, a.id) END)
 ORDER BY CASE WHEN %(newer)s THEN b.created_at END, CASE WHEN %(newer)s THEN b.id END,
          b.created_at DESC, b.id DESC
 LIMIT %(limit)s;

-- name: count_lines
SELECT batch_id, state, count(*)::integer AS n FROM batch_line
 WHERE batch_id = ANY(%(ids)s)
 GROUP BY batch_id, state;

-- name: ask_cancel
UPDATE batch SET cancel_asked_at = %(now)s
 WHERE id = %(id)s AND cancel_asked_at IS NULL AND state IN ('validating', 'in_progress')
RETURNING id;

-- name: delete_batch
DELETE FROM batch WHERE id = %(id)s AND state IN ('failed', 'ended') RETURNING output_file, input_file;

-- name: claim_batch
-- One whose file is to be read, or whose results are to be written, and that nobody works on: its
-- lines are all done, or it is over or cancelled and none of them runs any more.
UPDATE batch SET worker = %(me)s
 WHERE id = (SELECT b.id FROM batch b
              WHERE b.state IN ('validating', 'in_progress', 'finalizing')
                AND NOT EXISTS (SELECT FROM gateway g
                                 WHERE g.instance = b.worker AND g.seen_at > %(alive)s)
                AND (b.state <> 'in_progress'
                     OR (NOT EXISTS (SELECT FROM batch_line l WHERE l.batch_id = b.id AND l.state = 'running')
                         AND (b.cancel_asked_at IS NOT NULL OR b.expires_at <= %(now)s
                              OR NOT EXISTS (SELECT FROM batch_line l
                                              WHERE l.batch_id = b.id AND l.state = 'waiting'))))
              ORDER BY b.created_at, b.id
              LIMIT 1
                FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: let_go
-- Whoever worked on it could not go on: somebody else may.
UPDATE batch SET worker = NULL WHERE id = %(id)s AND worker = %(me)s;

-- name: copy_lines
COPY batch_line (batch_id, number, model, start, bytes) FROM STDIN;

-- name: begin_batch
UPDATE batch
   SET state = 'in_progress', begun_at = %(now)s, worker = NULL, total = %(total)s, models = %(models)s
 WHERE id = %(id)s AND worker = %(me)s AND state = 'validating'
RETURNING id;

-- name: fail_batch
UPDATE batch SET state = 'failed', ended_at = %(now)s, worker = NULL, errors = %(errors)s, total = %(total)s
 WHERE id = %(id)s AND worker = %(me)s AND state = 'validating';

-- name: list_models
-- Of open batches: what lines may wait for.
SELECT DISTINCT unnest(models) AS model FROM batch
 WHERE state = 'in_progress' AND cancel_asked_at IS NULL AND expires_at > %(now)s;

-- name: count_running
SELECT model, count(*)::integer AS n FROM batch_line WHERE state = 'running' GROUP BY model;

-- name: adopt_lines
-- Lines of gateways that are gone: of earlier runs of ours, and of who was not seen for a while.
UPDATE batch_line l SET state = 'waiting', worker = NULL
 WHERE l.state = 'running' AND l.worker <> %(me)s
   AND NOT EXISTS (SELECT FROM gateway g
                    WHERE g.instance = l.worker AND g.seen_at > %(alive)s AND g.name <> %(name)s);

-- name: lock_claims
-- One gateway at a time shares out what is left over.
SELECT pg_try_advisory_xact_lock(7218436521) AS mine;

-- name: claim_lines
-- In turns: the first line of each tenant's oldest batch, then the second of each, and so on.
UPDATE batch_line l SET state = 'running', worker = %(me)s
  FROM (SELECT n.batch_id, n.number
          FROM (SELECT b.id, b.created_at,
                       row_number() OVER (PARTITION BY b.tenant_id ORDER BY b.created_at, b.id) AS place
                  FROM batch b
                 WHERE b.state = 'in_progress' AND b.cancel_asked_at IS NULL
                   AND b.expires_at > %(now)s AND %(model)s = ANY(b.models)
                   AND EXISTS (SELECT FROM batch_line w
                                WHERE w.batch_id = b.id AND w.model = %(model)s AND w.state = 'waiting')) AS b
          JOIN LATERAL (SELECT w.batch_id, w.number, row_number() OVER (ORDER BY w.number) AS turn
                          FROM batch_line w
                         WHERE w.batch_id = b.id AND w.model = %(model)s AND w.state = 'waiting'
                           AND (w.not_before IS NULL OR w.not_before <= %(now)s)
                         ORDER BY w.number
                         LIMIT %(most)s) AS n ON true
         ORDER BY b.place, n.turn, b.created_at, b.id
         LIMIT %(most)s) AS chosen
 WHERE l.batch_id = chosen.batch_id AND l.number = chosen.number AND l.state = 'waiting'
RETURNING l.batch_id, l.number, l.model, l.start, l.bytes, l.troubles;

-- name: list_claimed
-- What their workers need to know of these batches.
SELECT b.id, b.tenant_id, b.api_key_id, b.dialect, b.endpoint, b.input_file, b.created_at
  FROM batch b WHERE b.id = ANY(%(ids)s);

-- name: end_line
-- Whoever lost it meanwhile ends nothing.
UPDATE batch_line
   SET state = %(state)s, answer = %(answer)s, report = %(report)s
 WHERE batch_id = %(batch_id)s AND number = %(number)s AND state = 'running' AND worker = %(me)s
RETURNING number;

-- name: put_back
UPDATE batch_line
   SET state = 'waiting', worker = NULL, not_before = %(not_before)s, troubles = troubles + %(trouble)s
 WHERE batch_id = %(batch_id)s AND number = %(number)s AND state = 'running' AND worker = %(me)s;

-- name: put_all_back
-- Of a gateway that stops.
UPDATE batch_line SET state = 'waiting', worker = NULL, not_before = NULL
 WHERE state = 'running' AND worker = %(me)s;

-- name: close_lines
-- What was not answered in time, or is not wanted any more.
UPDATE batch_line SET state = %(state)s, worker = NULL
 WHERE batch_id = %(batch_id)s AND state = 'waiting';

-- name: finalize
UPDATE batch SET state = 'finalizing', finalizing_at = coalesce(finalizing_at, %(now)s)
 WHERE id = %(id)s AND worker = %(me)s AND state IN ('in_progress', 'finalizing')
RETURNING id;

-- name: list_uncharged
-- Answers whose use is not on record yet: on its way in a gateway that lives, or left by one that died.
SELECT l.number, l.report,
       EXISTS (SELECT FROM gateway g WHERE g.instance = l.worker AND g.seen_at > %(alive)s) AS alive
  FROM batch_line l
 WHERE l.batch_id = %(batch_id)s AND l.state = 'answered'
   AND NOT EXISTS (SELECT FROM usage u WHERE u.source = %(source)s AND u.sequence = l.number)
 ORDER BY l.number
 LIMIT 200;

-- name: list_ended
SELECT number, start, bytes, state, answer FROM batch_line
 WHERE batch_id = %(batch_id)s AND number > %(after)s
 ORDER BY number
 LIMIT 500;

-- name: end_batch
UPDATE batch
   SET state = 'ended', ended_at = %(now)s, worker = NULL, output_file = %(output_file)s,
       error_file = %(error_file)s, answered = %(answered)s, refused = %(refused)s,
       expired = %(expired)s, cancelled = %(cancelled)s
 WHERE id = %(id)s AND worker = %(me)s AND state = 'finalizing'
RETURNING id;

-- name: insert_end
-- The record of how its lines ended: what `sublet verify` holds the charges to.
INSERT INTO batch_end (batch_id, tenant_id, total, answered, refused, expired, cancelled, happened_at,
                       recorded_at)
SELECT id, tenant_id, total, answered, refused, expired, cancelled, %(now)s, %(now)s
  FROM batch WHERE id = %(id)s;

-- name: audit_ended
-- How many uses each batch that has ended was charged for, beside what its record says.
SELECT e.*, count(u.id)::integer AS charged, count(u.id) FILTER (WHERE u.tenant_id <> e.tenant_id) AS strange
  FROM batch_end e
  LEFT JOIN usage u ON u.source = 'batch:' || e.batch_id
 GROUP BY e.batch_id;

-- name: audit_going
-- Uses of a line that is not answered, and answered lines of batches that have ended without a record.
SELECT u.source, u.sequence, l.state
  FROM usage u
  JOIN batch b ON u.source = 'batch:' || b.id AND b.state = 'in_progress'
  JOIN batch_line l ON l.batch_id = b.id AND l.number = u.sequence
 WHERE l.state <> 'answered'
 LIMIT 100;

-- name: audit_strays
-- Uses of a batch that has neither a record of its end nor any lines.
SELECT u.source, count(*) AS uses
  FROM usage u
 WHERE u.source LIKE 'batch:%%'
   AND NOT EXISTS (SELECT FROM batch_end e WHERE 'batch:' || e.batch_id = u.source)
   AND NOT EXISTS (SELECT FROM batch b WHERE 'batch:' || b.id = u.source)
 GROUP BY u.source
 LIMIT 100;

-- name: delete_lines
DELETE FROM batch_line WHERE batch_id = %(id)s;
