-- name: insert_stored
INSERT INTO stored_file (id, tenant_id, created_at) VALUES (%(id)s, %(tenant_id)s, %(now)s);

-- name: finish_stored
-- Of one that was given up meanwhile nothing is finished.
UPDATE stored_file
   SET bytes = %(size)s, purpose = %(purpose)s, name = %(name)s, listed = %(listed)s,
       expires_at = %(expires_at)s
 WHERE id = %(id)s AND bytes IS NULL AND deleted_at IS NULL
RETURNING id;

-- name: get_stored
SELECT id, tenant_id, purpose, name, bytes AS size, created_at, expires_at
  FROM stored_file
 WHERE id = %(id)s AND tenant_id = %(tenant_id)s AND bytes IS NOT NULL AND deleted_at IS NULL
   AND (expires_at IS NULL OR expires_at > %(now)s);

-- name: list_stored
-- One more than the page has room for says that there is more. The order is of (created_at, id).
SELECT f.id, f.tenant_id, f.purpose, f.name, f.bytes AS size, f.created_at, f.expires_at
  FROM stored_file f
  LEFT JOIN stored_file a ON a.id = %(after)s AND a.tenant_id = f.tenant_id
 WHERE f.tenant_id = %(tenant_id)s AND f.listed AND f.bytes IS NOT NULL AND f.deleted_at IS NULL
   AND (f.expires_at IS NULL OR f.expires_at > %(now)s)
   AND (%(purpose)s::text IS NULL OR f.purpose = %(purpose)s)
   AND (%(after)s::uuid IS NULL
        OR CASE WHEN %(newest_first)s THEN (f.created_at, f.id) < (a.created_at, a.id)
                ELSE (f.created_at, f.id) > (a.created_at, a.id) END)
 ORDER BY CASE WHEN %(newest_first)s THEN f.created_at END DESC,
          CASE WHEN %(newest_first)s THEN f.id END DESC,
          f.created_at, f.id
 LIMIT %(limit)s;

-- name: mark_deleted
UPDATE stored_file SET deleted_at = %(now)s
 WHERE id = %(id)s AND deleted_at IS NULL
RETURNING id;

-- name: list_over
-- What is over its time, and what began to come so long ago that nobody sends it any more.
SELECT id FROM stored_file
 WHERE deleted_at IS NULL
   AND (expires_at <= %(now)s OR (bytes IS NULL AND created_at < %(stalled)s))
 ORDER BY created_at LIMIT 100;

-- name: keep_until
UPDATE stored_file SET expires_at = greatest(expires_at, %(until)s)
 WHERE id = %(id)s AND expires_at IS NOT NULL;
