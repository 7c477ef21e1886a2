-- When a lease that goes on with another was asked for at first: its place among those that wait.

ALTER TABLE lease ADD COLUMN first_requested_at timestamptz;  -- null: it goes on with none

WITH RECURSIVE chain AS (
    SELECT id, requested_at AS first FROM lease WHERE resumes IS NULL AND resumable
    UNION ALL
    SELECT lease.id, chain.first FROM chain JOIN lease ON lease.resumes = chain.id
)
UPDATE lease
   SET first_requested_at = chain.first
  FROM chain
 WHERE lease.id = chain.id AND lease.resumes IS NOT NULL;
