-- Batches: many requests in one file, answered from what interactive traffic leaves over, within a
-- day. Any gateway works on any line; who died has its lines taken up by others.

CREATE TABLE batch (
    id              uuid        PRIMARY KEY,
    tenant_id       uuid        NOT NULL REFERENCES tenant,
    api_key_id      uuid        NOT NULL REFERENCES api_key,   -- whose budgets its lines are held to
    dialect         text        NOT NULL CHECK (dialect IN ('openai', 'anthropic')),
    endpoint        text        NOT NULL,
    input_file      uuid        NOT NULL REFERENCES stored_file,
    output_file     uuid        REFERENCES stored_file,
    error_file      uuid        REFERENCES stored_file,
    state           text        NOT NULL
        CHECK (state IN ('validating', 'failed', 'in_progress', 'finalizing', 'ended')),
    worker          uuid,       -- the run of a gateway that reads its file, or writes its results
    models          text[]      NOT NULL DEFAULT '{}',          -- that its lines name
    metadata        json        NOT NULL,
    errors          json        NOT NULL DEFAULT '[]',          -- why it failed
    output_seconds  integer     NOT NULL CHECK (output_seconds > 0),  -- that its results are kept
    -- How its lines ended, once they all did; until then they are counted.
    total           integer     NOT NULL DEFAULT 0,
    answered        integer     NOT NULL DEFAULT 0,
    refused         integer     NOT NULL DEFAULT 0,
    expired         integer     NOT NULL DEFAULT 0,
    cancelled       integer     NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL,
    begun_at        timestamptz,
    cancel_asked_at timestamptz,
    finalizing_at   timestamptz,
    ended_at        timestamptz,
    expires_at      timestamptz NOT NULL,
    CHECK (expires_at > created_at),
    CHECK ((state IN ('failed', 'ended')) = (ended_at IS NOT NULL))
);
CREATE INDEX batch_of_tenant ON batch (tenant_id, dialect, created_at, id);
CREATE INDEX batch_open ON batch (created_at, id) WHERE state IN ('validating', 'in_progress', 'finalizing');
CREATE INDEX batch_of_input ON batch (input_file) WHERE state IN ('validating', 'in_progress', 'finalizing');

-- Until its batch ends. What was answered is sealed, and goes to a file then.
CREATE TABLE batch_line (
    batch_id   uuid        NOT NULL REFERENCES batch,
    number     integer     NOT NULL CHECK (number > 0),   -- of the line in its file
    model      text        NOT NULL,
    start      bigint      NOT NULL,                      -- where in its file it begins, and how long it is
    bytes      integer     NOT NULL,
    state      text        NOT NULL DEFAULT 'waiting'
        CHECK (state IN ('waiting', 'running', 'answered', 'refused', 'expired', 'cancelled')),
    worker     uuid,       -- the run of a gateway that works on it, or answered it
    not_before timestamptz,                               -- it is tried again then
    troubles   integer     NOT NULL DEFAULT 0,            -- how often a model broke off with it
    answer     bytea,
    report     bytea,      -- what it used, priced: the same line that goes to the gateway's spool
    PRIMARY KEY (batch_id, number),
    CHECK ((state IN ('answered', 'refused')) = (answer IS NOT NULL)),
    CHECK ((state = 'answered') = (report IS NOT NULL))
);
CREATE INDEX batch_line_waiting ON batch_line (batch_id, model, number) WHERE state = 'waiting';
CREATE INDEX batch_line_running ON batch_line (worker, model) WHERE state = 'running';
