-- name: put_model
INSERT INTO model (name, owner_id, title, recipe, serving, artefact_id, licence, licence_url,
                   tokens_per_second, created_at)
VALUES (%(name)s, %(owner_id)s, %(title)s, %(recipe)s, %(serving)s, %(artefact_id)s, %(licence)s,
        %(licence_url)s, %(tokens_per_second)s, %(now)s)
    ON CONFLICT (name) DO UPDATE
   SET title = EXCLUDED.title, recipe = EXCLUDED.recipe, serving = EXCLUDED.serving,
       licence = EXCLUDED.licence, licence_url = EXCLUDED.licence_url,
       tokens_per_second = CASE WHEN model.measured_at IS NULL THEN EXCLUDED.tokens_per_second
                                ELSE model.tokens_per_second END
 WHERE model.owner_id IS NULL AND EXCLUDED.owner_id IS NULL AND model.artefact_id IS NULL
RETURNING name;

-- name: get_model
SELECT name, owner_id, title, recipe, serving, artefact_id, licence, licence_url, tokens_per_second,
       measured_at, deleted_at, created_at, base
  FROM model WHERE name = %(name)s;

-- name: lock_model
SELECT name, owner_id, title, recipe, serving, artefact_id, licence, licence_url, tokens_per_second,
       measured_at, deleted_at, created_at, base
  FROM model WHERE name = %(name)s FOR UPDATE;

-- name: list_models
-- Of one tenant, or without one all.
SELECT name, owner_id, title, recipe, serving, artefact_id, licence, licence_url, tokens_per_second,
       measured_at, deleted_at, created_at, base
  FROM model
 WHERE deleted_at IS NULL
   AND (%(everybody)s OR owner_id = %(owner_id)s)
 ORDER BY name;

-- name: set_serving
UPDATE model SET recipe = %(recipe)s, serving = %(serving)s WHERE name = %(name)s;

-- name: set_measured
UPDATE model SET tokens_per_second = %(tokens_per_second)s, measured_at = %(now)s WHERE name = %(name)s;

-- name: delete_model
UPDATE model SET deleted_at = %(now)s WHERE name = %(name)s;

-- name: get_deployment
SELECT name FROM deployment WHERE name = %(name)s;

-- name: find_key_asker
-- The artefact of the model that a replica loads: only while it does.
SELECT m.artefact_id, r.secret
  FROM replica r JOIN model m ON m.name = r.deployment
 WHERE r.id = %(id)s AND r.state = 'starting' AND m.deleted_at IS NULL AND m.artefact_id IS NOT NULL;

-- name: find_by_artefact
SELECT name FROM model WHERE artefact_id = %(id)s;
