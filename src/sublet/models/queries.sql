-- name: put_deployment
INSERT INTO deployment (name, recipe, context_tokens, wanted, features, temperature, top_p, owner_id,
                        min_replicas, max_replicas, tier, outstanding_tokens, first_token_ms,
                        idle_seconds, target, created_at)
VALUES (%(name)s, %(recipe)s, %(context_tokens)s, %(wanted)s, %(features)s,
        %(temperature)s, %(top_p)s, %(owner_id)s, %(min_replicas)s, %(max_replicas)s, %(tier)s,
        %(outstanding_tokens)s, %(first_token_ms)s, %(idle_seconds)s, %(target)s, %(now)s)
    ON CONFLICT (name) DO UPDATE
   SET recipe = EXCLUDED.recipe, context_tokens = EXCLUDED.context_tokens, wanted = EXCLUDED.wanted,
       features = EXCLUDED.features,
       temperature = EXCLUDED.temperature, top_p = EXCLUDED.top_p;

-- name: set_scaling
-- How it stands now is kept within its new bounds.
UPDATE deployment
   SET min_replicas = %(min_replicas)s, max_replicas = %(max_replicas)s, tier = %(tier)s,
       outstanding_tokens = %(outstanding_tokens)s, first_token_ms = %(first_token_ms)s,
       idle_seconds = %(idle_seconds)s,
       target = least(greatest(target, %(min_replicas)s), %(max_replicas)s)
 WHERE name = %(name)s;

-- name: set_target
UPDATE deployment SET target = %(target)s, fewer_since = %(fewer_since)s WHERE name = %(name)s;

-- name: list_warmups
-- How long the last replicas of each deployment took from their lease to their first request.
SELECT d.name, extract(epoch FROM r.ready_at - r.started_at)::double precision AS seconds
  FROM deployment d
 CROSS JOIN LATERAL (SELECT ready_at, started_at FROM replica
                      WHERE deployment = d.name AND ready_at IS NOT NULL AND started_at IS NOT NULL
                      ORDER BY ready_at DESC LIMIT 5) AS r;

-- name: put_load
INSERT INTO deployment_load (gateway, deployment, requests, outstanding_tokens, first_token_ms, asked_at, at)
VALUES (%(gateway)s, %(deployment)s, %(requests)s, %(outstanding_tokens)s, %(first_token_ms)s,
        %(asked_at)s, %(now)s)
    ON CONFLICT (gateway, deployment) DO UPDATE
   SET requests = EXCLUDED.requests, outstanding_tokens = EXCLUDED.outstanding_tokens,
       first_token_ms = EXCLUDED.first_token_ms,
       asked_at = greatest(EXCLUDED.asked_at, deployment_load.asked_at), at = EXCLUDED.at;

-- name: list_loads
-- Of all gateways together. One that says nothing any more has nothing that runs; when it was
-- asked last still counts.
SELECT deployment,
       coalesce(sum(requests) FILTER (WHERE at > %(since)s), 0)::bigint AS requests,
       coalesce(sum(outstanding_tokens) FILTER (WHERE at > %(since)s), 0)::bigint AS outstanding_tokens,
       max(first_token_ms) FILTER (WHERE at > %(since)s AND requests > 0) AS first_token_ms,
       max(asked_at) AS asked_at
  FROM deployment_load GROUP BY deployment;

-- name: list_deployments
SELECT name, recipe, context_tokens, wanted, features, temperature, top_p, owner_id, min_replicas,
       max_replicas, tier, outstanding_tokens, first_token_ms, idle_seconds, target, fewer_since
  FROM deployment ORDER BY name;

-- name: insert_replica
INSERT INTO replica (id, deployment, url, secret, state, detail, since, started_at)
VALUES (%(id)s, %(deployment)s, %(url)s, %(secret)s, %(state)s, %(detail)s, %(since)s, %(started_at)s);

-- name: set_replica_state
UPDATE replica
   SET state = %(state)s, detail = %(detail)s, since = %(now)s,
       ready_at = CASE WHEN %(state)s = 'ready' THEN coalesce(ready_at, %(now)s) ELSE ready_at END
 WHERE id = %(id)s AND state <> %(state)s;

-- name: set_replica_url
UPDATE replica SET url = %(url)s WHERE id = %(id)s AND state = 'starting';

-- name: list_live_replicas
SELECT id, deployment, url, secret, state, detail, since, started_at, ready_at, adapters,
       EXISTS (SELECT FROM lease WHERE lease.id = replica.id AND tier <> 'interruptible') AS firm
  FROM replica
 WHERE state <> 'gone'
 ORDER BY deployment, since, id;

-- name: get_last_replica
SELECT id, deployment, url, secret, state, detail, since, started_at, ready_at, adapters,
       EXISTS (SELECT FROM lease WHERE lease.id = replica.id AND tier <> 'interruptible') AS firm
  FROM replica
 WHERE deployment = %(deployment)s
 ORDER BY since DESC
 LIMIT 1;

-- name: set_wanted
UPDATE deployment SET wanted = %(wanted)s WHERE name = %(name)s
RETURNING name, recipe, context_tokens, wanted, features, temperature, top_p, owner_id, min_replicas,
          max_replicas, tier, outstanding_tokens, first_token_ms, idle_seconds, target, fewer_since;
