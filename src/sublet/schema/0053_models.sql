-- The catalogue: whose a model is, how it is served, and where its weights are kept.

-- Files of a tenant, sealed on disk with a key of their own. A deleted one has no key any more, so
-- that nobody can read what is left of it, here or in a backup.
CREATE TABLE artefact (
    id          uuid        PRIMARY KEY,
    tenant_id   uuid        NOT NULL REFERENCES tenant,
    kind        text        NOT NULL,             -- 'weights'
    state       text        NOT NULL CHECK (state IN ('receiving', 'checking', 'ready', 'refused', 'deleted')),
    detail      text,                             -- why it is refused, or what it waits for
    origin      text        NOT NULL CHECK (origin IN ('upload', 'path', 's3')),
    source      json        NOT NULL,             -- where it comes from; no secret is in it
    secret      bytea,                            -- that it is fetched with, sealed by the vault; null once it is here
    sealed_key  bytea,                            -- of its files, sealed by the vault; null once deleted
    facts       json,                             -- what its headers say, once they were read
    created_at  timestamptz NOT NULL,
    since       timestamptz NOT NULL,             -- in its state
    CHECK ((state = 'deleted') = (sealed_key IS NULL))
);
CREATE INDEX artefact_of_tenant ON artefact (tenant_id) WHERE state <> 'deleted';
CREATE INDEX artefact_at_work ON artefact (since) WHERE state IN ('receiving', 'checking');

CREATE TABLE artefact_file (
    artefact_id uuid    NOT NULL REFERENCES artefact,
    number      integer NOT NULL CHECK (number >= 0),
    path        text    NOT NULL CHECK (path <> ''),
    bytes       bigint  NOT NULL CHECK (bytes >= 0),
    sha256      bytea   CHECK (length(sha256) = 32),  -- of the whole; null: nobody said it before it was here
    PRIMARY KEY (artefact_id, number),
    UNIQUE (artefact_id, path)
);

-- What has arrived: each part of a file is as long as all others but the last.
CREATE TABLE artefact_part (
    artefact_id uuid    NOT NULL,
    file        integer NOT NULL,
    part        integer NOT NULL CHECK (part >= 0),
    sha256      bytea   NOT NULL CHECK (length(sha256) = 32),
    PRIMARY KEY (artefact_id, file, part),
    FOREIGN KEY (artefact_id, file) REFERENCES artefact_file (artefact_id, number)
);

CREATE TABLE model (
    name              text        PRIMARY KEY,    -- what callers put in `model`; a tenant's begins with its own name and /
    owner_id          uuid        REFERENCES tenant,  -- who alone sees and may use it; null: the house's, sold to all
    title             text        NOT NULL,
    recipe            text        NOT NULL,       -- the file that says how it is served
    serving           json        NOT NULL,       -- all that a replica needs, as the recipe said it then
    artefact_id       uuid        REFERENCES artefact,  -- null: its weights come in a package that the recipe names
    licence           text        NOT NULL,
    licence_url       text        NOT NULL,
    tokens_per_second double precision CHECK (tokens_per_second > 0),  -- of one replica with its slots full; null: not measured
    measured_at       timestamptz,                -- null: the recipe says it
    deleted_at        timestamptz,
    created_at        timestamptz NOT NULL
);
CREATE INDEX model_of_owner ON model (owner_id);

-- A deployment is of a model. Those of before have the name of their recipe, and come with their
-- model at the next start.
ALTER TABLE deployment
    ADD COLUMN owner_id           uuid REFERENCES tenant,            -- as its model's
    ADD COLUMN min_replicas       integer NOT NULL DEFAULT 1 CHECK (min_replicas >= 0),
    ADD COLUMN max_replicas       integer NOT NULL DEFAULT 1 CHECK (max_replicas >= 1),
    ADD COLUMN tier               text    NOT NULL DEFAULT 'interruptible'
        CHECK (tier IN ('interruptible', 'on_demand')),               -- of the leases of its replicas
    ADD COLUMN outstanding_tokens integer NOT NULL DEFAULT 4096 CHECK (outstanding_tokens > 0),  -- that one replica shall have
    ADD COLUMN first_token_ms     integer NOT NULL DEFAULT 2000 CHECK (first_token_ms > 0),      -- that nine of ten requests shall wait at most
    ADD COLUMN idle_seconds       integer NOT NULL DEFAULT 300 CHECK (idle_seconds > 0),         -- without a request, before it goes to its minimum
    -- How many replicas it shall have now, and since when fewer would do.
    ADD COLUMN target             integer NOT NULL DEFAULT 1 CHECK (target >= 0),
    ADD COLUMN fewer_since        timestamptz,
    ADD CHECK (min_replicas <= max_replicas);

-- When it took its first request: its warm-up, of which the next one's is guessed.
ALTER TABLE replica ADD COLUMN started_at timestamptz, ADD COLUMN ready_at timestamptz;
CREATE INDEX replica_warm ON replica (deployment, ready_at DESC) WHERE ready_at IS NOT NULL;

-- What each gateway has of each deployment now. Worth nothing after a crash.
CREATE UNLOGGED TABLE deployment_load (
    gateway            text        NOT NULL,      -- its name
    deployment         text        NOT NULL,
    requests           integer     NOT NULL,      -- that run or wait
    outstanding_tokens bigint      NOT NULL,      -- that they may still need
    first_token_ms     integer,                   -- that nine of ten of the last minute waited; null: too few
    asked_at           timestamptz,               -- when somebody asked last
    at                 timestamptz NOT NULL,
    PRIMARY KEY (gateway, deployment)
);
