-- Whether tenants' leases have their nodes to themselves, as the pool's policy says, and was sold.

ALTER TABLE pool
    ADD COLUMN exclusive boolean NOT NULL DEFAULT false,
    ADD COLUMN node_gpus integer NOT NULL DEFAULT 1 CHECK (node_gpus > 0);  -- of its largest node

ALTER TABLE lease ADD COLUMN exclusive boolean NOT NULL DEFAULT false;
