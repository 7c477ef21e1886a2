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

-- name: count_gateways
SELECT count(*) AS gateways FROM gateway WHERE seen_at > %(now)s::timestamptz - interval '10 seconds';

-- name: use_signature
-- Whoever is second, on whichever gateway, gets no row.
INSERT INTO used_signature (signature, used_at)
VALUES (decode(%(signature)s, 'hex'), %(now)s)
    ON CONFLICT DO NOTHING
RETURNING used_at;

-- name: forget_signatures
DELETE FROM used_signature WHERE used_at < %(before)s;

-- name: insert_response
INSERT INTO stored_response (id, tenant_id, status, instance, sealed, created_at, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(status)s, %(instance)s, %(sealed)s, %(now)s, %(expires_at)s);

-- name: end_response
-- One that was deleted meanwhile stays deleted.
UPDATE stored_response SET status = 'ended', sealed = %(sealed)s
 WHERE id = %(id)s AND tenant_id = %(tenant_id)s;

-- name: get_response
SELECT s.status, s.sealed,
       EXISTS (SELECT FROM gateway g
                WHERE g.instance = s.instance
                  AND g.seen_at > %(now)s::timestamptz - interval '30 seconds') AS alive
  FROM stored_response s
 WHERE s.id = %(id)s AND s.tenant_id = %(tenant_id)s AND s.expires_at > %(now)s;

-- name: delete_response
DELETE FROM stored_response WHERE id = %(id)s AND tenant_id = %(tenant_id)s RETURNING id;

-- name: cancel_response
UPDATE stored_response SET cancel_asked = true WHERE id = %(id)s AND tenant_id = %(tenant_id)s;

-- name: list_running_responses
-- Of these, which shall go on.
SELECT id FROM stored_response
 WHERE id = ANY(%(ids)s) AND status = 'running' AND NOT cancel_asked;

-- name: forget_responses
-- What is over its time, and of each tenant what is over its number.
DELETE FROM stored_response
 WHERE expires_at <= %(now)s
    OR id IN (SELECT id
                FROM (SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY created_at DESC)
                                 AS place
                        FROM stored_response) AS newest
               WHERE place > %(most)s);
