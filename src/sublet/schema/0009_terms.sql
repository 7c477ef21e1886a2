-- What a pool's policy says of promises, and what each lease was promised.

ALTER TABLE pool
    ADD COLUMN reserve         integer NOT NULL DEFAULT 0 CHECK (reserve >= 0),  -- GPUs never sold
    ADD COLUMN firm_seconds    integer NOT NULL DEFAULT 3600                     -- an on-demand lease is firm for so long
        CHECK (firm_seconds BETWEEN 60 AND 86400),
    ADD COLUMN firm_confidence double precision                                  -- null: the instance's
        CHECK (firm_confidence BETWEEN 0.5 AND 0.9999),
    ADD COLUMN credit_percent  integer NOT NULL DEFAULT 100                      -- of a broken promise's rest
        CHECK (credit_percent BETWEEN 0 AND 1000),
    ADD COLUMN floor_nanos     numeric(38,0) CHECK (floor_nanos > 0),            -- least price of a GPU-hour; null: none
    ADD COLUMN quiet_from      integer CHECK (quiet_from BETWEEN 0 AND 86399),   -- second of the day, UTC …
    ADD COLUMN quiet_until     integer CHECK (quiet_until BETWEEN 0 AND 86399),  -- … and until when nothing new is sold
    ADD CHECK ((quiet_from IS NULL) = (quiet_until IS NULL) AND quiet_from <> quiet_until);

-- The whole policy from then on, as it was set; null in rows of before, and where only GPUs changed.
ALTER TABLE pool_event ADD COLUMN policy json;

ALTER TABLE lease
    -- How long from its start it is firm. Null: sold before there were minimum runs, so firm to its end.
    ADD COLUMN firm_seconds integer DEFAULT 0 CHECK (firm_seconds >= 0),
    ADD COLUMN credit_percent integer NOT NULL DEFAULT 100,  -- of the rest of its promise, should it be broken
    ADD COLUMN noticed_at   timestamptz;  -- when it was told to go
UPDATE lease SET firm_seconds = NULL WHERE tier = 'on_demand';

-- What is held and promised of a pool is summed up at each sale.
CREATE INDEX lease_holding ON lease (pool) INCLUDE (gpus, firm_seconds, running_at)
    WHERE state IN ('admitted', 'provisioning', 'running', 'draining');
