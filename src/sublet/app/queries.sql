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
