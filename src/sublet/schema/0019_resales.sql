-- Unused GPUs of reserved windows that their tenants put back on sale, and who used them.

CREATE TABLE resale (
    id             uuid        PRIMARY KEY,
    reservation_id uuid        NOT NULL REFERENCES reservation,
    gpus           integer     NOT NULL CHECK (gpus > 0),
    limit_nanos    numeric(38,0) CHECK (limit_nanos > 0),  -- least price of a GPU-hour; null: paused, for any price
    share_percent  integer     NOT NULL CHECK (share_percent BETWEEN 0 AND 100),  -- of what is paid for them, to the seller
    listed_at      timestamptz NOT NULL,
    ended_at       timestamptz                             -- taken back; null: until its window ends
);
CREATE INDEX resale_of_reservation ON resale (reservation_id);

-- Which lease runs on whose GPUs, and whether the seller has its share.
CREATE TABLE resale_use (
    resale_id uuid    NOT NULL REFERENCES resale,
    lease_id  uuid    NOT NULL REFERENCES lease,
    gpus      integer NOT NULL CHECK (gpus > 0),
    paid      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (lease_id, resale_id)
);
CREATE INDEX resale_use_of_resale ON resale_use (resale_id);
CREATE INDEX resale_use_open ON resale_use (lease_id) WHERE NOT paid;
