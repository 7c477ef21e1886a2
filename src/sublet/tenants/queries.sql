-- name: insert_tenant
-- Two tenants of one name would be told apart by nobody: the second inserts nothing.
INSERT INTO tenant (id, name, kind, network_allowed, created_at)
VALUES (%(id)s, %(name)s, %(kind)s, %(network_allowed)s, %(created_at)s)
    ON CONFLICT DO NOTHING
RETURNING id;

-- name: get_tenant
SELECT id, name, kind, network_allowed, created_at FROM tenant WHERE id = %(id)s;

-- name: get_tenant_named
SELECT id, name, kind, network_allowed, created_at FROM tenant WHERE name = %(name)s;

-- name: list_tenants
SELECT id, name, kind, network_allowed, created_at FROM tenant ORDER BY created_at, id;

-- name: set_network_allowed
UPDATE tenant SET network_allowed = %(network_allowed)s WHERE id = %(id)s;

-- name: insert_key
INSERT INTO api_key (id, tenant_id, role, name, digest, hint, created_at, expires_at)
VALUES (%(id)s, %(tenant_id)s, %(role)s, %(name)s, %(digest)s, %(hint)s, %(created_at)s, %(expires_at)s)
    ON CONFLICT (digest) DO NOTHING;

-- name: insert_access_key
INSERT INTO access_key (key_id, access_key_id, sealed_secret)
VALUES (%(key_id)s, %(access_key_id)s, %(sealed_secret)s);

-- name: list_keys
SELECT k.id, k.tenant_id, k.role, k.name, k.hint, k.created_at, k.expires_at, k.revoked_at,
       a.access_key_id
  FROM api_key k
  LEFT JOIN access_key a ON a.key_id = k.id
 WHERE k.tenant_id IS NOT DISTINCT FROM %(tenant_id)s
 ORDER BY k.created_at, k.id;

-- name: revoke_key
-- A tenant can name only its own; a repeat keeps the first instant.
UPDATE api_key
   SET revoked_at = coalesce(revoked_at, %(now)s)
 WHERE id = %(id)s
   AND (%(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s)
RETURNING id;

-- name: list_revoked
SELECT id
  FROM api_key
 WHERE revoked_at >= %(since)s;

-- name: find_caller
SELECT k.id AS key_id, k.role, k.expires_at, k.revoked_at,
       t.id, t.name, t.kind, t.network_allowed, t.created_at
  FROM api_key k
  LEFT JOIN tenant t ON t.id = k.tenant_id
 WHERE k.digest = %(digest)s;

-- name: find_signer
SELECT k.id AS key_id, k.role, k.expires_at, k.revoked_at, a.access_key_id, a.sealed_secret,
       t.id, t.name, t.kind, t.network_allowed, t.created_at
  FROM access_key a
  JOIN api_key k ON k.id = a.key_id
  JOIN tenant t ON t.id = k.tenant_id
 WHERE a.access_key_id = %(access_key_id)s;
