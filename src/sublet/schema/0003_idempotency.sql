-- Calls that may be sent again: what they were answered, kept by what the caller named them.
--
-- A record: the row is written in the transaction of the call's effect, so there is one
-- exactly when the effect is there. It never expires: forgetting it would let a very late
-- repeat of a payment be a second one.

CREATE TABLE idempotency_key (
    caller      text        NOT NULL
                CHECK (caller = 'operator' OR caller ~ '^tenant:[0-9a-f-]{36}$'),
    key         text        NOT NULL CHECK (key ~ '^[\x20-\x7e]{1,255}$'),
    method      text        NOT NULL CHECK (method <> ''),
    path        text        NOT NULL CHECK (path LIKE '/%'),
    body_digest bytea       NOT NULL CHECK (length(body_digest) = 32),  -- sha256
    status      smallint    NOT NULL CHECK (status BETWEEN 200 AND 299),  -- a refusal has no effect
    response    json        NOT NULL,  -- not jsonb, which would change the order of its fields
    created_at  timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,  -- the order it is sealed in
    PRIMARY KEY (caller, key)
);

CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON idempotency_key
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON idempotency_key
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
