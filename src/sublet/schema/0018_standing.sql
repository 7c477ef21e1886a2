-- What a sale asks of a pool's leases is answered from this index alone.

DROP INDEX lease_holding;
CREATE INDEX lease_holding ON lease (pool) INCLUDE (gpus, firm_seconds, running_at, state)
    WHERE state IN ('admitted', 'provisioning', 'running', 'draining');
-- A running lease is paid on every minute: room for that on its own page keeps the indexes as they are.
ALTER TABLE lease SET (fillfactor = 70);
