-- Where a lease's tenant wants to be told of its notice, beside the signal and the file.

CREATE TABLE webhook (
    lease_id uuid        PRIMARY KEY REFERENCES lease,
    url      text        NOT NULL,
    attempts integer     NOT NULL DEFAULT 0,
    next_at  timestamptz,                                             -- null: as soon as there is a notice
    outcome  text        CHECK (outcome IN ('delivered', 'given_up')),  -- null: neither yet
    detail   text                                                     -- of the last attempt
);
CREATE INDEX webhook_open ON webhook (lease_id) WHERE outcome IS NULL;
