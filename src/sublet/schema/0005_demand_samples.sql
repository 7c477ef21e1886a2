-- What the planner learns from, and what it last said.

-- Internal demand as the loop saw it, in slots of five minutes that start at a multiple of
-- five minutes: the worst of each slot, so fewest GPUs and most demand. A slot without a row
-- is not known: the control plane was away. Kept for a while and then forgotten; the record
-- is `pool_event` and `internal_job_event`.
CREATE TABLE demand_sample (
    pool    text        NOT NULL REFERENCES pool,
    slot    timestamptz NOT NULL,                     -- its start
    gpus    integer     NOT NULL CHECK (gpus >= 0),     -- fewest healthy
    running integer     NOT NULL CHECK (running >= 0),  -- most held by internal jobs
    pending integer     NOT NULL CHECK (pending >= 0),  -- most waited for by them
    PRIMARY KEY (pool, slot)
);
CREATE INDEX demand_sample_by_slot ON demand_sample (slot);

-- The newest plan of each pool: what may be sold firm and interruptible, and why.
CREATE TABLE surplus_plan (
    pool    text        PRIMARY KEY REFERENCES pool,
    made_at timestamptz NOT NULL,
    plan    json        NOT NULL  -- not jsonb, which would change the order of its fields
);
