-- Answers that their callers asked to be kept, with what was asked, to be fetched or gone on from.
-- No record: they are the tenant's, who may delete them, and they end by themselves. What was said
-- is sealed with a key that is not in this database, bound to the answer and its tenant.
CREATE TABLE stored_response (
    id           uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL REFERENCES tenant,
    status       text        NOT NULL CHECK (status IN ('running', 'ended')),
    instance     uuid,       -- the run of a gateway that works on it, in the background
    cancel_asked boolean     NOT NULL DEFAULT false,
    sealed       bytea       NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    CHECK (expires_at > created_at)
);
CREATE INDEX stored_response_expires_at ON stored_response (expires_at);
CREATE INDEX stored_response_tenant ON stored_response (tenant_id, created_at);
