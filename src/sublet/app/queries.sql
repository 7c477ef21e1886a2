-- name: try_lock_key
-- Two integers, so that it is never the lock of one that leads or migrates.
SELECT pg_try_advisory_xact_lock(hashtext(%(caller)s), hashtext(%(key)s)) AS mine;

-- name: try_lock_keys
-- The same of many; says of which it has the lock, by their place.
SELECT place::integer - 1 AS place
  FROM unnest(%(callers)s::text[], %(keys)s::text[]) WITH ORDINALITY AS named(caller, key, place)
 WHERE pg_try_advisory_xact_lock(hashtext(caller), hashtext(key));

-- name: wait_for_key
SELECT pg_advisory_xact_lock(hashtext(%(caller)s), hashtext(%(key)s));

-- name: limit_lock_waits
SELECT set_config('lock_timeout', %(limit)s, true);

-- name: unlimit_lock_waits
-- Back to what the server says: the effect's own locks are not our business.
SET LOCAL lock_timeout TO DEFAULT;

-- name: get_answers
SELECT caller, key, method, path, body_digest, status, response
  FROM idempotency_key
  JOIN unnest(%(callers)s::text[], %(keys)s::text[]) AS named(caller, key) USING (caller, key);

-- name: insert_answers
INSERT INTO idempotency_key (caller, key, method, path, body_digest, status, response, created_at)
SELECT *
  FROM unnest(%(caller)s::text[], %(key)s::text[], %(method)s::text[], %(path)s::text[],
              %(body_digest)s::bytea[], %(status)s::integer[], %(response)s::json[],
              %(created_at)s::timestamptz[]);

-- name: try_leader_lock
SELECT pg_try_advisory_lock(%(key)s) AS ours;

-- name: get_leader
SELECT epoch, beat, instance, engine, place, seen_at, boot, steady_seconds FROM leadership;

-- name: get_epoch
SELECT epoch FROM leadership;

-- name: take_leadership
INSERT INTO leadership (epoch, beat, instance, engine, place, seen_at, boot, steady_seconds)
VALUES (1, 0, %(instance)s, %(engine)s, %(place)s, %(now)s, %(boot)s, %(steady_seconds)s)
    ON CONFLICT (one) DO UPDATE
   SET epoch = leadership.epoch + 1, beat = 0, instance = excluded.instance,
       engine = excluded.engine, place = excluded.place, seen_at = excluded.seen_at,
       boot = excluded.boot, steady_seconds = excluded.steady_seconds
RETURNING epoch;

-- name: beat
UPDATE leadership
   SET beat = beat + 1, seen_at = %(now)s, boot = %(boot)s, steady_seconds = %(steady_seconds)s
 WHERE epoch = %(epoch)s;

-- name: depose
-- Nothing that checks its epoch is accepted of the leader any more.
UPDATE leadership SET epoch = epoch + 1 WHERE epoch = %(epoch)s;

-- name: end_connections
-- What a deposed leader had begun is undone. One's own role's connections one may end.
SELECT pg_terminate_backend(pid, %(wait_ms)s) AS ended
  FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = %(name)s AND pid <> pg_backend_pid();

-- name: set_for_audit
-- Until the transaction ends. A timeout of 0 is none; 32 MB are for each sort, twice that for each
-- hash table; compiling statements takes memory that nobody bounds; and where all of a table is
-- read, hashing beats sorting by more than PostgreSQL thinks.
SELECT set_config(name, value, true)
  FROM (VALUES ('statement_timeout', '0'), ('lock_timeout', '0'), ('transaction_timeout', '0'),
               ('idle_in_transaction_session_timeout', '0'), ('work_mem', '32MB'),
               ('hash_mem_multiplier', '2'), ('jit', 'off'), ('enable_sort', 'off')) AS wanted(name, value)
  JOIN pg_settings USING (name);

-- name: get_last_sign
-- When a Sublet last wrote something into this database.
SELECT greatest(
           (SELECT recorded_at FROM transfer ORDER BY sequence DESC LIMIT 1),
           (SELECT recorded_at FROM usage ORDER BY record DESC LIMIT 1),
           (SELECT recorded_at FROM lease_event ORDER BY record DESC LIMIT 1),
           (SELECT recorded_at FROM internal_job_event ORDER BY record DESC LIMIT 1),
           (SELECT recorded_at FROM pool_event ORDER BY sequence DESC LIMIT 1),
           (SELECT recorded_at FROM price ORDER BY id DESC LIMIT 1),
           (SELECT sealed_at FROM seal ORDER BY number DESC LIMIT 1),
           (SELECT max(seen_at) FROM gateway)) AS at;
