-- Leases that come back by themselves once what reclaimed them has left.

ALTER TABLE lease
    ADD COLUMN resumable boolean NOT NULL DEFAULT false,  -- reclaimed, it waits to come back
    ADD COLUMN resumes   uuid UNIQUE REFERENCES lease;    -- the lease that it goes on with

CREATE INDEX lease_paused ON lease (requested_at)
    WHERE resumable AND state = 'ended' AND end_reason = 'reclaimed';
