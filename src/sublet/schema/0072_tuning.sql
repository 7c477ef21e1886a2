-- Fine-tuning: a model learns from a tenant's examples, on leases that may be reclaimed. What it has
-- learnt lies in checkpoints; whoever trains next goes on from the last one.

-- What was learnt on top of another model is a model of its own, served by that one's replicas.
ALTER TABLE model ADD COLUMN base text REFERENCES model;

-- Which adapters a replica serves now: their artefacts.
ALTER TABLE replica ADD COLUMN adapters uuid[] NOT NULL DEFAULT '{}';

CREATE TABLE tuning (
    id              uuid        PRIMARY KEY,
    tenant_id       uuid        NOT NULL REFERENCES tenant,
    api_key_id      uuid        NOT NULL REFERENCES api_key,
    base            text        NOT NULL REFERENCES model,
    suffix          text        NOT NULL,            -- of the new model's name, as its tenant wants it; or empty
    training_file   uuid        NOT NULL REFERENCES stored_file,
    validation_file uuid        REFERENCES stored_file,
    method          json        NOT NULL,            -- hyperparameters, all of them
    metadata        json        NOT NULL,
    price_id        bigint      NOT NULL REFERENCES price,   -- of a trained token, whatever changes meanwhile
    state           text        NOT NULL
        CHECK (state IN ('validating', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    error           json,                            -- why it failed
    model           text        REFERENCES model,    -- what came of it
    -- How much it is, as the first trainer counted it; and what is held for that.
    examples        integer     CHECK (examples > 0),
    steps           integer     CHECK (steps > 0),
    tokens          bigint      CHECK (tokens > 0),  -- of all epochs
    hold_id         uuid,
    -- Who trains now: a lease, and what it shows us.
    lease_id        uuid,
    secret          text,
    runs            integer     NOT NULL DEFAULT 0,  -- leases that were asked for
    fruitless       integer     NOT NULL DEFAULT 0,  -- of the last ones, that failed without a checkpoint
    not_before      timestamptz,                     -- the next one
    cancel_asked_at timestamptz,
    created_at      timestamptz NOT NULL,
    begun_at        timestamptz,
    ended_at        timestamptz,
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL)),
    CHECK ((lease_id IS NULL) = (secret IS NULL))
);
CREATE INDEX tuning_of_tenant ON tuning (tenant_id, created_at, id);
CREATE INDEX tuning_open ON tuning (created_at, id) WHERE state IN ('validating', 'queued', 'running');
CREATE INDEX tuning_of_file ON tuning (training_file) WHERE state IN ('validating', 'queued', 'running');

-- What was learnt up to a step: only from here on is it charged. A record.
CREATE TABLE tuning_checkpoint (
    tuning_id   uuid        NOT NULL REFERENCES tuning,
    step        integer     NOT NULL CHECK (step > 0),
    tokens      bigint      NOT NULL CHECK (tokens > 0),   -- trained up to it, from the first step on
    epoch       integer,                                    -- that ends with it; null: within one
    artefact_id uuid        NOT NULL REFERENCES artefact,
    lease_id    uuid        NOT NULL,                      -- who trained since the one before
    metrics     json        NOT NULL,
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (tuning_id, step)
);

-- What its tenant is told. A step is told once, however often it was trained.
CREATE TABLE tuning_event (
    id         uuid        PRIMARY KEY,
    tuning_id  uuid        NOT NULL REFERENCES tuning,
    number     bigint      GENERATED ALWAYS AS IDENTITY,
    step       integer,
    level      text        NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    message    text        NOT NULL,
    data       json,
    created_at timestamptz NOT NULL,
    UNIQUE (tuning_id, step)
);
CREATE INDEX tuning_event_of ON tuning_event (tuning_id, number);

-- How the lines of a batch ended, once all of them did. A record.
CREATE TABLE batch_end (
    batch_id    uuid        PRIMARY KEY,
    tenant_id   uuid        NOT NULL REFERENCES tenant,
    total       integer     NOT NULL CHECK (total >= 0),
    answered    integer     NOT NULL CHECK (answered >= 0),
    refused     integer     NOT NULL CHECK (refused >= 0),
    expired     integer     NOT NULL CHECK (expired >= 0),
    cancelled   integer     NOT NULL CHECK (cancelled >= 0),
    happened_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    record      bigint      GENERATED ALWAYS AS IDENTITY UNIQUE
);

DO $$
DECLARE record_table text;
BEGIN
    FOREACH record_table IN ARRAY ARRAY['tuning_checkpoint', 'batch_end'] LOOP
        EXECUTE format('CREATE TRIGGER the_past_stands BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION refuse_change()', record_table);
        EXECUTE format('CREATE TRIGGER the_past_is_not_cut BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', record_table);
    END LOOP;
END $$;
