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

-- name: find_key_of
SELECT id FROM api_key WHERE id = %(id)s AND tenant_id = %(tenant_id)s;

-- name: set_limit
INSERT INTO usage_limit (id, tenant_id, api_key_id, kind, set_by, amount, set_at)
VALUES (%(id)s, %(tenant_id)s, %(api_key_id)s, %(kind)s, %(set_by)s, %(amount)s, %(now)s)
    ON CONFLICT (tenant_id, coalesce(api_key_id, tenant_id), kind, set_by)
    DO UPDATE SET amount = EXCLUDED.amount, set_at = EXCLUDED.set_at
RETURNING *;

-- name: remove_limit
DELETE FROM usage_limit
 WHERE tenant_id = %(tenant_id)s AND api_key_id IS NOT DISTINCT FROM %(api_key_id)s
   AND kind = %(kind)s AND set_by = %(set_by)s
RETURNING id;

-- name: note_limit_change
UPDATE usage_limit_version SET version = version + 1;

-- name: get_limit_version
SELECT version FROM usage_limit_version;

-- name: list_limits
SELECT * FROM usage_limit WHERE tenant_id = %(tenant_id)s
 ORDER BY api_key_id NULLS FIRST, kind, set_by;

-- name: list_all_limits
SELECT * FROM usage_limit;

-- name: lock_limits
SELECT * FROM usage_limit WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE;

-- name: get_standings
-- What budgets have spent in these periods, and what runs on them.
SELECT l.id, coalesce(s.nanos, 0) AS spent,
       (SELECT coalesce(sum(h.nanos), 0) FROM budget_hold h
         WHERE h.limit_id = l.id AND h.starts_at = l.starts_at AND h.expires_at > %(now)s) AS held
  FROM unnest(%(ids)s::uuid[], %(starts)s::timestamptz[]) AS l(id, starts_at)
  LEFT JOIN budget_spent s ON s.limit_id = l.id AND s.starts_at = l.starts_at;

-- name: hold_budgets
INSERT INTO budget_hold (usage_id, limit_id, starts_at, nanos, holder, expires_at)
SELECT h.usage_id, h.limit_id, h.starts_at, h.nanos, %(holder)s, %(expires_at)s
  FROM unnest(%(usages)s::uuid[], %(limits)s::uuid[], %(starts)s::timestamptz[],
              %(nanos)s::numeric[]) AS h(usage_id, limit_id, starts_at, nanos)
    ON CONFLICT DO NOTHING;

-- name: spend_budgets
-- In the order of limits: two gateways must not wait both ways.
WITH ended AS (
    DELETE FROM budget_hold h
     USING unnest(%(ids)s::uuid[], %(nanos)s::numeric[]) AS u(id, nanos)
     WHERE h.usage_id = u.id
    RETURNING h.limit_id, h.starts_at, u.nanos
)
INSERT INTO budget_spent AS s (limit_id, starts_at, nanos)
SELECT limit_id, starts_at, sum(nanos) FROM ended GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (limit_id, starts_at) DO UPDATE SET nanos = s.nanos + EXCLUDED.nanos;

-- name: release_budgets
DELETE FROM budget_hold WHERE usage_id = ANY(%(ids)s);

-- name: sweep_budgets
DELETE FROM budget_hold
 WHERE starts_with(holder, %(holder)s) OR expires_at < %(long_ago)s;

-- name: tell_rates
INSERT INTO rate_use (gateway, subject, requests, tokens, running, at)
SELECT %(gateway)s, u.subject, u.requests, u.tokens, u.running, %(now)s
  FROM unnest(%(subjects)s::uuid[], %(requests)s::bigint[], %(tokens)s::bigint[],
              %(running)s::integer[]) AS u(subject, requests, tokens, running)
    ON CONFLICT (gateway, subject) DO UPDATE
   SET requests = EXCLUDED.requests, tokens = EXCLUDED.tokens, running = EXCLUDED.running,
       at = EXCLUDED.at;

-- name: hear_rates
SELECT gateway, subject, requests, tokens, running FROM rate_use
 WHERE gateway <> %(gateway)s AND at > %(since)s;
-- name: find_signer
SELECT k.id AS key_id, k.role, k.expires_at, k.revoked_at, a.access_key_id, a.sealed_secret,
       t.id, t.name, t.kind, t.network_allowed, t.created_at
  FROM access_key a
  JOIN api_key k ON k.id = a.key_id
  JOIN tenant t ON t.id = k.tenant_id
 WHERE a.access_key_id = %(access_key_id)s;
