-- People: who signs in to the console, as what, and what they changed there.

CREATE TABLE person (
    id            uuid        PRIMARY KEY,
    email         text        NOT NULL UNIQUE CHECK (email = lower(email) AND email LIKE '%_@_%'),
    name          text        NOT NULL CHECK (name <> ''),
    role          text        NOT NULL CHECK (role IN ('owner', 'operator', 'finance', 'read_only',
                                                       'tenant_admin', 'tenant_member')),
    tenant_id     uuid        REFERENCES tenant,  -- null: one of the operator's own
    password_hash text,                           -- argon2id; null: signs in by OpenID Connect alone
    sealed_code   bytea,                          -- the secret of one-time codes; null: none are asked for
    code_step     bigint      NOT NULL DEFAULT 0, -- of the newest code that was taken: none counts twice
    oidc_subject  text        UNIQUE,             -- '<issuer> <subject>'
    created_at    timestamptz NOT NULL,
    disabled_at   timestamptz,
    CHECK ((role IN ('tenant_admin', 'tenant_member')) = (tenant_id IS NOT NULL))
);
CREATE INDEX person_of_tenant ON person (tenant_id);

-- A link that makes one account.
CREATE TABLE invitation (
    digest     bytea       PRIMARY KEY,           -- sha256 of its token, which is shown once
    id         uuid        NOT NULL UNIQUE,
    role       text        NOT NULL,
    tenant_id  uuid        REFERENCES tenant,
    email      text,                              -- null: whoever has the link says
    made_by    uuid        REFERENCES person,     -- null: by an operator's key
    made_at    timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_by    uuid        REFERENCES person,
    revoked_at timestamptz
);

CREATE TABLE person_session (
    digest     bytea       PRIMARY KEY,           -- sha256 of the cookie
    person_id  uuid        NOT NULL REFERENCES person,
    confirmed  boolean     NOT NULL,              -- false: the one-time code is still to come
    acts_for   uuid        REFERENCES tenant,     -- whom somebody of the operator's acts for
    agent      text        NOT NULL,              -- the browser, as it calls itself
    made_at    timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX person_session_of ON person_session (person_id);

-- Sign-ins that failed lately, by what was tried: 'email:…', 'address:…'.
CREATE TABLE sign_in_failure (
    subject text        NOT NULL,
    at      timestamptz NOT NULL
);
CREATE INDEX sign_in_failure_of ON sign_in_failure (subject, at);

-- What people changed in the console: asked for, then answered. A record.
CREATE TABLE person_change (
    change_id   uuid        NOT NULL,
    event       text        NOT NULL CHECK (event IN ('asked', 'done', 'refused')),
    person_id   uuid        REFERENCES person,    -- null: nobody signed in, such as a failed sign-in
    tenant_id   uuid        REFERENCES tenant,    -- whose thing it was; null: the operator's
    action      text        NOT NULL,
    subject     text        NOT NULL,             -- what it was done to
    before      jsonb,                            -- as it was, where that is known
    after       jsonb,                            -- what was asked for, or what it is now
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (change_id, event)
);
CREATE INDEX person_change_of_tenant ON person_change (tenant_id, record DESC);

DO $$
BEGIN
    CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON person_change
        FOR EACH ROW EXECUTE FUNCTION refuse_change();
    CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON person_change
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
END $$;
