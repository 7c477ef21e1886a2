-- name: insert_artefact
INSERT INTO artefact (id, tenant_id, kind, state, origin, source, secret, sealed_key, created_at, since)
VALUES (%(id)s, %(tenant_id)s, %(kind)s, %(state)s, %(origin)s, %(source)s, %(secret)s, %(sealed_key)s,
        %(now)s, %(now)s);

-- name: insert_file
INSERT INTO artefact_file (artefact_id, number, path, bytes, sha256)
VALUES (%(artefact_id)s, %(number)s, %(path)s, %(size)s, %(sha256)s);

-- name: get_artefact
SELECT id, tenant_id, kind, state, detail, origin, source, secret, sealed_key, facts, created_at, since
  FROM artefact WHERE id = %(id)s;

-- name: lock_artefact
SELECT id, tenant_id, kind, state, detail, origin, source, secret, sealed_key, facts, created_at, since
  FROM artefact WHERE id = %(id)s FOR UPDATE;

-- name: list_at_work
-- What has to be fetched or read, oldest first. An upload that is receiving waits for its tenant.
SELECT id FROM artefact
 WHERE state = 'checking' OR (state = 'receiving' AND origin <> 'upload')
 ORDER BY since, id;

-- name: list_files
SELECT number, path, bytes AS size, sha256 FROM artefact_file WHERE artefact_id = %(id)s ORDER BY number;

-- name: move
UPDATE artefact
   SET state = %(state)s, detail = %(detail)s, since = %(now)s,
       facts = coalesce(%(facts)s, facts),
       secret = CASE WHEN %(state)s = 'receiving' THEN secret END,
       sealed_key = CASE WHEN %(state)s <> 'deleted' THEN sealed_key END
 WHERE id = %(id)s AND state = %(before)s
RETURNING id;

-- name: tell
UPDATE artefact SET detail = %(detail)s WHERE id = %(id)s AND detail IS DISTINCT FROM %(detail)s;

-- name: put_part
INSERT INTO artefact_part (artefact_id, file, part, sha256)
VALUES (%(artefact_id)s, %(file)s, %(part)s, %(sha256)s)
    ON CONFLICT (artefact_id, file, part) DO UPDATE SET sha256 = EXCLUDED.sha256;

-- name: list_parts
SELECT file, part FROM artefact_part WHERE artefact_id = %(id)s;

-- name: forget_parts
DELETE FROM artefact_part WHERE artefact_id = %(id)s;

-- name: forget_files
DELETE FROM artefact_file WHERE artefact_id = %(id)s;

-- name: sum_bytes
SELECT coalesce(sum(f.bytes), 0)::bigint AS bytes, count(DISTINCT a.id) AS artefacts
  FROM artefact a
  LEFT JOIN artefact_file f ON f.artefact_id = a.id
 WHERE a.tenant_id = %(tenant_id)s AND a.state NOT IN ('deleted', 'refused');

-- name: lock_tenant
SELECT id FROM tenant WHERE id = %(tenant_id)s FOR UPDATE;

-- name: list_gone
-- Of these, what is deleted or refused, or unknown here: nobody needs its parts.
SELECT asked.id FROM unnest(%(ids)s::uuid[]) AS asked(id)
  LEFT JOIN artefact a ON a.id = asked.id
 WHERE a.state IN ('deleted', 'refused');

-- name: set_sha256
UPDATE artefact_file SET sha256 = %(sha256)s WHERE artefact_id = %(artefact_id)s AND number = %(number)s;
