-- name: insert_instance
INSERT INTO gateway (instance, name, seen_at) VALUES (%(instance)s, %(name)s, %(now)s);

-- name: touch_instance
UPDATE gateway SET seen_at = %(now)s WHERE instance = %(instance)s;

-- name: try_name
-- Held by the session, so it is free the moment its process is dead.
SELECT pg_try_advisory_lock(%(key)s) AS mine;

-- name: get_clock
-- What the control plane's clock said at its last beat.
SELECT seen_at, boot, steady_seconds FROM leadership;

-- name: has_company
SELECT EXISTS (SELECT FROM gateway
                WHERE instance <> %(instance)s
                  AND seen_at > %(now)s::timestamptz - interval '10 seconds') AS there;

-- name: use_signature
-- Whoever is second, on whichever gateway, gets no row.
INSERT INTO used_signature (signature, used_at)
VALUES (decode(%(signature)s, 'hex'), %(now)s)
    ON CONFLICT DO NOTHING
RETURNING used_at;

-- name: forget_signatures
DELETE FROM used_signature WHERE used_at < %(before)s;
