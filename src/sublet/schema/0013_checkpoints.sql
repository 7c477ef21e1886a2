-- Until when a lease's work is safe, as its tenant says; and who gave way lately.

ALTER TABLE lease ADD COLUMN checkpoint_at timestamptz;
CREATE INDEX lease_reclaimed ON lease (noticed_at) WHERE end_reason = 'reclaimed';
