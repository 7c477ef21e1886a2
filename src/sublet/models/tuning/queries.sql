-- name: insert_tuning
INSERT INTO tuning (id, tenant_id, api_key_id, base, suffix, training_file, validation_file, method,
                    metadata, price_id, state, created_at)
VALUES (%(id)s, %(tenant_id)s, %(api_key_id)s, %(base)s, %(suffix)s, %(training_file)s,
        %(validation_file)s, %(method)s, %(metadata)s, %(price_id)s, 'validating', %(now)s);

-- name: get_tuning
SELECT * FROM tuning WHERE id = %(id)s;

-- name: lock_tuning
SELECT * FROM tuning WHERE id = %(id)s FOR UPDATE;

-- name: list_tunings
-- Newest first, from behind one.
SELECT t.* FROM tuning t
  LEFT JOIN tuning a ON a.id = %(after)s AND a.tenant_id = t.tenant_id
 WHERE t.tenant_id = %(tenant_id)s
   AND (%(after)s::uuid IS NULL OR (t.created_at, t.id) < (a.created_at, a.id))
   AND (%(metadata)s::jsonb IS NULL OR t.metadata::jsonb @> %(metadata)s)
 ORDER BY t.created_at DESC, t.id DESC
 LIMIT %(limit)s;

-- name: list_open
SELECT * FROM tuning WHERE state IN ('validating', 'queued', 'running') ORDER BY created_at, id;

-- name: count_open
SELECT count(*) AS n FROM tuning
 WHERE tenant_id = %(tenant_id)s AND state IN ('validating', 'queued', 'running');

-- name: find_reader
SELECT id FROM tuning
 WHERE %(file_id)s IN (training_file, validation_file) AND state IN ('validating', 'queued', 'running')
 LIMIT 1;

-- name: move
UPDATE tuning
   SET state = %(state)s, error = %(error)s, model = coalesce(%(model)s, model),
       examples = coalesce(%(examples)s, examples), steps = coalesce(%(steps)s, steps),
       tokens = coalesce(%(tokens)s, tokens), hold_id = coalesce(%(hold_id)s, hold_id),
       begun_at = CASE WHEN %(state)s = 'running' THEN %(now)s ELSE begun_at END,
       ended_at = CASE WHEN %(state)s IN ('succeeded', 'failed', 'cancelled') THEN %(now)s END
 WHERE id = %(id)s AND state = %(before)s
RETURNING id;

-- name: set_run
UPDATE tuning
   SET lease_id = %(lease_id)s, secret = %(secret)s, fruitless = %(fruitless)s, not_before = %(not_before)s,
       runs = runs + (lease_id IS NULL AND %(lease_id)s::uuid IS NOT NULL)::integer
 WHERE id = %(id)s;

-- name: ask_cancel
UPDATE tuning SET cancel_asked_at = %(now)s
 WHERE id = %(id)s AND cancel_asked_at IS NULL AND state IN ('validating', 'queued', 'running')
RETURNING id;

-- name: insert_event
INSERT INTO tuning_event (id, tuning_id, step, level, message, data, created_at)
VALUES (%(id)s, %(tuning_id)s, %(step)s, %(level)s, %(message)s, %(data)s, %(now)s)
    ON CONFLICT DO NOTHING;

-- name: list_events
-- Newest first, from behind one.
SELECT e.id, e.level, e.message, e.data, e.created_at
  FROM tuning_event e
  LEFT JOIN tuning_event a ON a.id = %(after)s AND a.tuning_id = e.tuning_id
 WHERE e.tuning_id = %(id)s AND (%(after)s::uuid IS NULL OR e.number < a.number)
 ORDER BY e.number DESC
 LIMIT %(limit)s;

-- name: insert_checkpoint
INSERT INTO tuning_checkpoint (tuning_id, step, tokens, epoch, artefact_id, lease_id, metrics,
                               happened_at, recorded_at)
VALUES (%(id)s, %(step)s, %(tokens)s, %(epoch)s, %(artefact_id)s, %(lease_id)s, %(metrics)s, %(now)s, %(now)s);

-- name: list_checkpoints
SELECT step, tokens, epoch, artefact_id, lease_id, metrics, happened_at
  FROM tuning_checkpoint WHERE tuning_id = %(id)s ORDER BY step DESC;

-- name: insert_model
INSERT INTO model (name, owner_id, title, recipe, serving, artefact_id, licence, licence_url, base, created_at)
VALUES (%(name)s, %(owner_id)s, %(title)s, %(recipe)s, %(serving)s, %(artefact_id)s, %(licence)s,
        %(licence_url)s, %(base)s, %(now)s);

-- name: list_adapters
-- What was learnt on top of models that are served: in the order of their making.
SELECT m.name, m.owner_id, m.base, m.artefact_id
  FROM model m JOIN model b ON b.name = m.base
 WHERE m.deleted_at IS NULL AND b.deleted_at IS NULL AND m.artefact_id IS NOT NULL
 ORDER BY m.created_at, m.name;

-- name: list_artefacts
-- Of a job: also what was begun and is no checkpoint.
SELECT id FROM artefact
 WHERE tenant_id = %(tenant_id)s AND kind = 'adapter' AND state <> 'deleted' AND source ->> 'tuning' = %(id)s;

-- name: set_replica_adapters
UPDATE replica SET adapters = %(adapters)s WHERE id = %(id)s AND adapters <> %(adapters)s::uuid[];

-- name: find_adapted
-- A replica that may be given adapters, and the model that it serves.
SELECT deployment, secret FROM replica WHERE id = %(id)s AND state IN ('starting', 'ready');

-- name: audit_tunings
-- Each job that has ended or began to hold money: what was trained, what was charged, what is held.
SELECT t.id, t.state, t.tokens, t.hold_id, c.tokens AS trained, u.input_tokens AS charged_tokens,
       u.model, h.amount_nanos AS held_nanos, ch.amount_nanos AS charged_nanos, ch.price_ids, t.price_id,
       EXISTS (SELECT FROM open_hold o WHERE o.transfer_id = t.hold_id) AS holds
  FROM tuning t
  LEFT JOIN LATERAL (SELECT max(tokens) AS tokens FROM tuning_checkpoint WHERE tuning_id = t.id) AS c ON true
  LEFT JOIN usage u ON u.source = 'tuning:' || t.id AND u.sequence = 1
  LEFT JOIN charge ch ON ch.usage_id = u.id
  LEFT JOIN transfer h ON h.id = t.hold_id;

-- name: audit_checkpoints
-- A step that has no more tokens than the one before it.
SELECT tuning_id, step FROM (
    SELECT tuning_id, step, tokens, lag(tokens) OVER (PARTITION BY tuning_id ORDER BY step) AS before
      FROM tuning_checkpoint) AS each
 WHERE tokens <= before;

-- name: audit_stray_usages
SELECT source, sequence FROM usage u
 WHERE source LIKE 'tuning:%%'
   AND (sequence <> 1 OR NOT EXISTS (SELECT FROM tuning t WHERE 'tuning:' || t.id = u.source));
