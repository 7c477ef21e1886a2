-- name: insert_person
INSERT INTO person (id, email, name, role, tenant_id, password_hash, oidc_subject, created_at)
VALUES (%(id)s, %(email)s, %(name)s, %(role)s, %(tenant_id)s, %(password_hash)s, %(oidc_subject)s,
        %(now)s)
    ON CONFLICT (email) DO NOTHING
RETURNING *;

-- name: get_person
SELECT * FROM person WHERE id = %(id)s;

-- name: get_person_by_email
SELECT * FROM person WHERE email = %(email)s;

-- name: get_person_by_subject
SELECT * FROM person WHERE oidc_subject = %(subject)s;

-- name: list_people
SELECT *
  FROM person
 WHERE %(all)s OR tenant_id = %(tenant_id)s
 ORDER BY tenant_id NULLS FIRST, created_at;

-- name: count_people
SELECT count(*) AS people FROM person;

-- name: set_disabled
UPDATE person SET disabled_at = %(at)s WHERE id = %(id)s RETURNING *;

-- name: set_role
UPDATE person SET role = %(role)s WHERE id = %(id)s RETURNING *;

-- name: set_password
UPDATE person SET password_hash = %(hash)s WHERE id = %(id)s;

-- name: set_code
UPDATE person SET sealed_code = %(sealed)s, code_step = %(step)s WHERE id = %(id)s;

-- name: take_code
-- A code counts once: of two who send the same, the second finds nothing to update.
UPDATE person SET code_step = %(step)s WHERE id = %(id)s AND code_step < %(step)s RETURNING id;

-- name: set_subject
UPDATE person SET oidc_subject = %(subject)s WHERE id = %(id)s;

-- name: count_owners
SELECT count(*) AS owners FROM person WHERE role = 'owner' AND disabled_at IS NULL;

-- name: insert_invitation
INSERT INTO invitation (digest, id, role, tenant_id, email, made_by, made_at, expires_at)
VALUES (%(digest)s, %(id)s, %(role)s, %(tenant_id)s, %(email)s, %(made_by)s, %(now)s, %(expires_at)s);

-- name: get_invitation
SELECT *
  FROM invitation
 WHERE digest = %(digest)s
   FOR UPDATE;

-- name: find_invitation_of_email
SELECT *
  FROM invitation
 WHERE email = %(email)s AND used_by IS NULL AND revoked_at IS NULL AND expires_at > %(now)s
 ORDER BY made_at DESC
 LIMIT 1
   FOR UPDATE;

-- name: list_invitations
SELECT *
  FROM invitation
 WHERE used_by IS NULL AND revoked_at IS NULL AND expires_at > %(now)s
   AND (%(all)s OR tenant_id = %(tenant_id)s)
 ORDER BY made_at DESC;

-- name: use_invitation
UPDATE invitation SET used_by = %(person_id)s WHERE digest = %(digest)s;

-- name: revoke_invitation
UPDATE invitation
   SET revoked_at = %(now)s
 WHERE id = %(id)s AND used_by IS NULL AND (%(all)s OR tenant_id = %(tenant_id)s)
RETURNING id;

-- name: insert_session
INSERT INTO person_session (digest, person_id, confirmed, agent, made_at, seen_at, expires_at)
VALUES (%(digest)s, %(person_id)s, %(confirmed)s, %(agent)s, %(now)s, %(now)s, %(expires_at)s);

-- name: get_session
SELECT s.digest, s.confirmed, s.acts_for, s.made_at, s.seen_at, s.expires_at, p.*
  FROM person_session s
  JOIN person p ON p.id = s.person_id
 WHERE s.digest = %(digest)s AND s.expires_at > %(now)s AND s.seen_at > %(idle_since)s
   AND p.disabled_at IS NULL;

-- name: touch_session
UPDATE person_session SET seen_at = %(now)s WHERE digest = %(digest)s;

-- name: set_acts_for
UPDATE person_session SET acts_for = %(tenant_id)s WHERE digest = %(digest)s;

-- name: list_sessions
SELECT digest, agent, made_at, seen_at, expires_at
  FROM person_session
 WHERE person_id = %(person_id)s AND confirmed AND expires_at > %(now)s AND seen_at > %(idle_since)s
 ORDER BY seen_at DESC;

-- name: end_session
DELETE FROM person_session WHERE digest = %(digest)s;

-- name: end_sessions_of
DELETE FROM person_session WHERE person_id = %(person_id)s AND digest <> %(but)s;

-- name: forget_sessions
DELETE FROM person_session WHERE expires_at <= %(now)s OR seen_at <= %(idle_since)s;

-- name: count_failures
SELECT subject, count(*) AS failures
  FROM sign_in_failure
 WHERE subject = ANY(%(subjects)s) AND at > %(since)s
 GROUP BY subject;

-- name: insert_failures
INSERT INTO sign_in_failure (subject, at) SELECT unnest(%(subjects)s::text[]), %(now)s;

-- name: forget_failures
DELETE FROM sign_in_failure WHERE at <= %(since)s OR subject = %(subject)s;

-- name: insert_change
INSERT INTO person_change (change_id, event, person_id, tenant_id, action, subject, before, after,
                           happened_at, recorded_at)
VALUES (%(change_id)s, %(event)s, %(person_id)s, %(tenant_id)s, %(action)s, %(subject)s, %(before)s,
        %(after)s, %(now)s, %(now)s);

-- name: list_changes
-- One row a change, newest first: who asked for what, what it was before, and what became of it.
SELECT asked.change_id, asked.record, asked.happened_at, asked.action,
       coalesce(answered.subject, asked.subject) AS subject, answered.before,
       asked.after AS asked, answered.event AS outcome, answered.after, p.name AS person,
       p.email, t.name AS tenant
  FROM person_change asked
  LEFT JOIN person_change answered
    ON answered.change_id = asked.change_id AND answered.event <> 'asked'
  LEFT JOIN person p ON p.id = asked.person_id
  LEFT JOIN tenant t ON t.id = asked.tenant_id
 WHERE asked.event = 'asked'
   AND (%(all)s OR asked.tenant_id = %(tenant_id)s)
   AND (%(before)s::bigint IS NULL OR asked.record < %(before)s)
 ORDER BY asked.record DESC
 LIMIT %(limit)s;
