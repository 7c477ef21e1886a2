-- Files that tenants keep at the gateway: what batches and fine-tuning read and write. Each is an
-- artefact of one file, so it is sealed with a key of its own, counted in its tenant's quota, and
-- deleted for good by the end of that key.
CREATE TABLE stored_file (
    id          uuid        PRIMARY KEY REFERENCES artefact,
    tenant_id   uuid        NOT NULL REFERENCES tenant,
    -- All of these are null while it is still on its way.
    purpose     text        CHECK (purpose <> ''),
    name        text,
    bytes       bigint      CHECK (bytes >= 0),
    listed      boolean,                          -- is it one of those that its tenant sees?
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz,                      -- then it is deleted; null: when its tenant says so
    deleted_at  timestamptz,
    CHECK (num_nulls(purpose, name, bytes, listed) IN (0, 4))
);
CREATE INDEX stored_file_of_tenant ON stored_file (tenant_id, created_at, id) WHERE deleted_at IS NULL;
CREATE INDEX stored_file_expires_at ON stored_file (expires_at) WHERE deleted_at IS NULL;
CREATE INDEX stored_file_on_its_way ON stored_file (created_at) WHERE bytes IS NULL AND deleted_at IS NULL;
