-- name: put_deployment
INSERT INTO deployment (name, recipe, context_tokens, wanted, features, temperature, top_p, created_at)
VALUES (%(name)s, %(recipe)s, %(context_tokens)s, %(wanted)s, %(features)s,
        %(temperature)s, %(top_p)s, %(now)s)
    ON CONFLICT (name) DO UPDATE
   SET recipe = EXCLUDED.recipe, context_tokens = EXCLUDED.context_tokens, wanted = EXCLUDED.wanted,
       features = EXCLUDED.features,
       temperature = EXCLUDED.temperature, top_p = EXCLUDED.top_p;

-- name: list_deployments
SELECT name, recipe, context_tokens, wanted, features, temperature, top_p FROM deployment ORDER BY name;

-- name: insert_replica
INSERT INTO replica (id, deployment, url, secret, state, detail, since)
VALUES (%(id)s, %(deployment)s, %(url)s, %(secret)s, %(state)s, %(detail)s, %(since)s);

-- name: set_replica_state
UPDATE replica
   SET state = %(state)s, detail = %(detail)s, since = %(now)s
 WHERE id = %(id)s AND state <> %(state)s;

-- name: set_replica_url
UPDATE replica SET url = %(url)s WHERE id = %(id)s AND state = 'starting';

-- name: list_live_replicas
SELECT id, deployment, url, secret, state, detail, since,
       EXISTS (SELECT FROM lease WHERE lease.id = replica.id AND tier <> 'interruptible') AS firm
  FROM replica
 WHERE state <> 'gone'
 ORDER BY deployment, since, id;

-- name: get_last_replica
SELECT id, deployment, url, secret, state, detail, since,
       EXISTS (SELECT FROM lease WHERE lease.id = replica.id AND tier <> 'interruptible') AS firm
  FROM replica
 WHERE deployment = %(deployment)s
 ORDER BY since DESC
 LIMIT 1;

-- name: set_wanted
UPDATE deployment SET wanted = %(wanted)s WHERE name = %(name)s
RETURNING name, recipe, context_tokens, wanted, features, temperature, top_p;
