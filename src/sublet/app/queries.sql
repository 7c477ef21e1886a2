-- name: try_lock_key
-- Two integers, so that it is never the lock of one that leads or migrates.
SELECT pg_try_advisory_xact_lock(hashtext(%(caller)s), hashtext(%(key)s)) AS mine;

-- name: wait_for_key
SELECT pg_advisory_xact_lock(hashtext(%(caller)s), hashtext(%(key)s));

-- name: limit_lock_waits
SELECT set_config('lock_timeout', %(limit)s, true);

-- name: unlimit_lock_waits
-- Back to what the server says: the effect's own locks are not our business.
SET LOCAL lock_timeout TO DEFAULT;

-- name: get_answer
SELECT method, path, body_digest, status, response
  FROM idempotency_key
 WHERE caller = %(caller)s AND key = %(key)s;

-- name: insert_answer
INSERT INTO idempotency_key (caller, key, method, path, body_digest, status, response, created_at)
VALUES (%(caller)s, %(key)s, %(method)s, %(path)s, %(body_digest)s, %(status)s, %(response)s, %(created_at)s);

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
