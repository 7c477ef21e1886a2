-- Who leads: one control plane at a time takes leases and replicas on.
--
-- An advisory lock says who may; this row says who does, and fences whoever did before. Not a
-- record: the present.

CREATE TABLE leadership (
    one      boolean     PRIMARY KEY DEFAULT true CHECK (one),  -- there is one row
    epoch    bigint      NOT NULL,  -- counts leaders; a step that was begun under another is refused
    beat     bigint      NOT NULL,  -- counts what the leader does: one that stands still has stopped
    instance uuid        NOT NULL,  -- one run of one control plane
    engine   uuid        NOT NULL,  -- what its leases run on
    place    text        NOT NULL,  -- where that is, for people
    seen_at  timestamptz NOT NULL,  -- of the last beat, by the leader's own clock …
    boot     text        NOT NULL,  -- … and by what nobody can set: which start of its machine …
    steady_seconds double precision NOT NULL  -- … and how long it was running
);
