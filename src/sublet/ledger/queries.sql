-- Named queries: `-- name: <verb_noun>`, a line saying why, then the statement.

-- name: open_account
-- Opening one that is open already changes nothing.
INSERT INTO account (code, currency, prepaid)
VALUES (%(code)s, %(currency)s, %(prepaid)s)
    ON CONFLICT (code) DO NOTHING;

-- name: get_account
SELECT id, code, currency, prepaid,
       debits_pending, debits_posted, credits_pending, credits_posted
  FROM account
 WHERE code = %(code)s;

-- name: find_accounts
SELECT code, id
  FROM account
 WHERE code = ANY(%(codes)s::text[]);

-- name: lock_accounts
-- In id order, so that two posts over the same accounts cannot deadlock.
SELECT id, code, currency, prepaid,
       debits_pending, debits_posted, credits_pending, credits_posted
  FROM account
 WHERE id = ANY(%(ids)s)
 ORDER BY id
   FOR NO KEY UPDATE;

-- name: lock_named_accounts
-- The same, by their codes.
SELECT id, code, currency, prepaid,
       debits_pending, debits_posted, credits_pending, credits_posted
  FROM account
 WHERE code = ANY(%(codes)s::text[])
 ORDER BY id
   FOR NO KEY UPDATE;

-- name: lock_accounts_of_transfers
-- The same, of all accounts that these transfers name.
SELECT id
  FROM account
 WHERE id IN (SELECT unnest(ARRAY[debit_account, credit_account])
                FROM transfer
               WHERE id = ANY(%(ids)s))
 ORDER BY id
   FOR NO KEY UPDATE;

-- name: insert_transfer
-- The caller chose the id. A repeat inserts nothing and returns no row.
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos,
                      reason, expires_at, happened_at, recorded_at)
VALUES (%(id)s, %(kind)s, %(pending_id)s, %(debit_account)s, %(credit_account)s,
        %(amount_nanos)s, %(reason)s, %(expires_at)s, %(happened_at)s, %(recorded_at)s)
    ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: get_transfer
SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
       expires_at, happened_at
  FROM transfer
 WHERE id = %(id)s;

-- name: get_resolution
-- How a pending transfer was resolved, if it was.
SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
       expires_at, happened_at
  FROM transfer
 WHERE pending_id = %(pending_id)s;

-- name: get_resolutions
SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
       expires_at, happened_at
  FROM transfer
 WHERE pending_id = ANY(%(ids)s::uuid[]);

-- name: move_balances
UPDATE account
   SET debits_pending  = debits_pending  + CASE id WHEN %(debit_account)s  THEN %(pending_nanos)s ELSE 0 END,
       credits_pending = credits_pending + CASE id WHEN %(credit_account)s THEN %(pending_nanos)s ELSE 0 END,
       debits_posted   = debits_posted   + CASE id WHEN %(debit_account)s  THEN %(posted_nanos)s ELSE 0 END,
       credits_posted  = credits_posted  + CASE id WHEN %(credit_account)s THEN %(posted_nanos)s ELSE 0 END
 WHERE id IN (%(debit_account)s, %(credit_account)s);

-- name: get_transfers
SELECT id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
       expires_at, happened_at
  FROM transfer
 WHERE id = ANY(%(ids)s::uuid[]);

-- name: insert_transfers
-- Many, each as insert_transfer would. Under the locks of their accounts, all of them; in id
-- order, so that two who use the same ids for other accounts cannot deadlock.
-- Arrays go in the binary format (b, not s), which costs the client half as much.
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos,
                      reason, expires_at, happened_at, recorded_at)
SELECT new.*, %(recorded_at)s::timestamptz
  FROM unnest(%(id)b::uuid[], %(kind)b::text[], %(pending_id)b::uuid[],
              %(debit_account)b::bigint[], %(credit_account)b::bigint[],
              %(amount_nanos)b::numeric[], %(reason)b::text[],
              %(expires_at)b::timestamptz[], %(happened_at)b::timestamptz[])
       AS new(id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
              expires_at, happened_at)
 ORDER BY new.id
    ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: insert_linked_transfers
-- The same, numbered in the order given: what is replayed in that order may spend what it has
-- just received. The numbers are given in this statement, as those of all other transfers are:
-- whoever seals the record waits for statements that write to it.
WITH number AS MATERIALIZED (
    SELECT place, nextval(pg_get_serial_sequence('transfer', 'sequence')) AS sequence
      FROM generate_series(1, cardinality(%(id)b::uuid[])) AS place
)
INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos,
                      reason, expires_at, happened_at, recorded_at, sequence)
OVERRIDING SYSTEM VALUE
SELECT new.id, new.kind, new.pending_id, new.debit_account, new.credit_account,
       new.amount_nanos, new.reason, new.expires_at, new.happened_at,
       %(recorded_at)s::timestamptz, number.sequence
  FROM unnest(%(id)b::uuid[], %(kind)b::text[], %(pending_id)b::uuid[],
              %(debit_account)b::bigint[], %(credit_account)b::bigint[],
              %(amount_nanos)b::numeric[], %(reason)b::text[],
              %(expires_at)b::timestamptz[], %(happened_at)b::timestamptz[]) WITH ORDINALITY
       AS new(id, kind, pending_id, debit_account, credit_account, amount_nanos, reason,
              expires_at, happened_at, place)
  JOIN number USING (place)
 ORDER BY new.id
    ON CONFLICT (id) DO NOTHING
RETURNING id;

-- name: move_balances_of_many
-- Each account once, with the sums.
UPDATE account
   SET debits_pending  = account.debits_pending  + change.debits_pending,
       debits_posted   = account.debits_posted   + change.debits_posted,
       credits_pending = account.credits_pending + change.credits_pending,
       credits_posted  = account.credits_posted  + change.credits_posted
  FROM unnest(%(id)b::bigint[], %(debits_pending)b::numeric[], %(debits_posted)b::numeric[],
              %(credits_pending)b::numeric[], %(credits_posted)b::numeric[])
       AS change(id, debits_pending, debits_posted, credits_pending, credits_posted)
 WHERE account.id = change.id;

-- name: pay_many
-- Each as a `posted` transfer that was asked for: all of those that were not recorded before, or
-- none, and why. Behind lock_accounts, in a statement of its own: it must see what they hold now.
WITH asked AS MATERIALIZED (
    SELECT new.*, t.id IS NOT NULL AS known,
           t.id IS NULL OR ((t.kind, t.debit_account, t.credit_account, t.amount_nanos, t.reason)
                            = ('posted', new.debit_account, new.credit_account,
                               new.amount_nanos, new.reason)) AS same
      FROM unnest(%(id)b::uuid[], %(debit_account)b::bigint[], %(credit_account)b::bigint[],
                  %(amount_nanos)b::numeric[], %(reason)b::text[], %(happened_at)b::timestamptz[])
           AS new(id, debit_account, credit_account, amount_nanos, reason, happened_at)
      LEFT JOIN transfer t ON t.id = new.id
), wrong AS MATERIALIZED (
    SELECT asked.id, CASE WHEN NOT asked.same THEN 'used'
                          WHEN payer.currency IS DISTINCT FROM paid.currency THEN 'missing'
                          ELSE 'poor' END AS why
      FROM (SELECT *, sum(amount_nanos) FILTER (WHERE NOT known)
                          OVER (PARTITION BY debit_account) AS nanos FROM asked) AS asked
      LEFT JOIN account payer ON payer.id = asked.debit_account
      LEFT JOIN account paid ON paid.id = asked.credit_account
     WHERE NOT asked.same
        OR payer.id IS NULL OR paid.id IS NULL OR payer.currency <> paid.currency
        OR (NOT asked.known AND payer.prepaid
            AND payer.credits_posted - payer.debits_posted - payer.debits_pending < asked.nanos)
), made AS (
    INSERT INTO transfer (id, kind, debit_account, credit_account, amount_nanos, reason,
                          happened_at, recorded_at)
    SELECT id, 'posted', debit_account, credit_account, amount_nanos, reason, happened_at,
           %(recorded_at)s::timestamptz
      FROM asked
     WHERE NOT known AND NOT EXISTS (SELECT FROM wrong)
     ORDER BY id
        ON CONFLICT (id) DO NOTHING
    RETURNING id, debit_account, credit_account, amount_nanos
), moved AS (
    UPDATE account
       SET debits_posted  = account.debits_posted + change.debits,
           credits_posted = account.credits_posted + change.credits
      FROM (SELECT id, sum(debits) AS debits, sum(credits) AS credits
              FROM (SELECT debit_account AS id, amount_nanos AS debits, 0 AS credits FROM made
                    UNION ALL
                    SELECT credit_account, 0, amount_nanos FROM made) AS side
             GROUP BY id) AS change
     WHERE account.id = change.id
)
SELECT id, why FROM wrong
UNION ALL
-- Taken at this very moment, by somebody who does not share our locks: the others were paid.
SELECT asked.id, 'taken'
  FROM asked
  LEFT JOIN made USING (id)
 WHERE NOT asked.known AND made.id IS NULL AND NOT EXISTS (SELECT FROM wrong);

-- name: open_holds
-- Behind insert_transfers. An id that somebody else took just then is of other accounts, or our
-- locks would have kept them apart: that is no hold of ours to open.
INSERT INTO open_hold (transfer_id, holder, expires_at)
SELECT new.id, new.holder, new.expires_at
  FROM unnest(%(id)b::uuid[], %(debit_account)b::bigint[], %(holder)b::text[],
              %(expires_at)b::timestamptz[])
       AS new(id, debit_account, holder, expires_at)
  JOIN transfer t ON t.id = new.id AND t.debit_account = new.debit_account;

-- name: lock_holds
-- In id order, so that two batches over the same holds cannot deadlock. A hold that somebody
-- resolved meanwhile is not among the rows.
SELECT t.id, t.kind, t.pending_id, t.debit_account, t.credit_account, t.amount_nanos, t.reason,
       t.expires_at, t.happened_at
  FROM open_hold o
  JOIN transfer t ON t.id = o.transfer_id
 WHERE o.transfer_id = ANY(%(ids)s::uuid[])
 ORDER BY o.transfer_id
   FOR UPDATE OF o;

-- name: find_resolved_holds
-- Those of these that are not open any more: mostly none, so mostly nothing is to be read.
SELECT id
  FROM unnest(%(ids)b::uuid[]) AS asked(id)
 WHERE NOT EXISTS (SELECT FROM open_hold o WHERE o.transfer_id = asked.id);

-- name: close_holds
-- Under their locks.
DELETE FROM open_hold
 WHERE transfer_id = ANY(%(ids)s::uuid[]);

-- name: insert_hold
-- A pending transfer, what it sets aside and its open hold, in one. Under the locks of its
-- accounts. A repeat changes nothing and returns no row.
WITH new AS (
    INSERT INTO transfer (id, kind, pending_id, debit_account, credit_account, amount_nanos,
                          reason, expires_at, happened_at, recorded_at)
    VALUES (%(id)s, %(kind)s, %(pending_id)s, %(debit_account)s, %(credit_account)s,
            %(amount_nanos)s, %(reason)s, %(expires_at)s, %(happened_at)s, %(recorded_at)s)
        ON CONFLICT (id) DO NOTHING
    RETURNING id, expires_at, debit_account, credit_account, amount_nanos
), moved AS (
    UPDATE account
       SET debits_pending  = debits_pending  + CASE account.id WHEN debit_account  THEN amount_nanos ELSE 0 END,
           credits_pending = credits_pending + CASE account.id WHEN credit_account THEN amount_nanos ELSE 0 END
      FROM new
     WHERE account.id IN (%(debit_account)s, %(credit_account)s)
), opened AS (
    INSERT INTO open_hold (transfer_id, holder, expires_at)
    SELECT id, %(holder)s, expires_at FROM new
)
SELECT id FROM new;

-- name: close_hold
-- Whoever deletes the row resolves the hold; everybody else finds it gone.
DELETE FROM open_hold
 WHERE transfer_id = %(id)s
RETURNING transfer_id;

-- name: list_expired_holds
-- Skips what somebody is resolving right now.
SELECT transfer_id
  FROM open_hold
 WHERE expires_at <= %(now)s
 ORDER BY transfer_id
 LIMIT %(limit)s
   FOR UPDATE SKIP LOCKED;

-- name: list_holds_of
-- Holds of one holder, or of all whose name starts so.
SELECT o.transfer_id, o.holder, t.debit_account, t.amount_nanos
  FROM open_hold o
  JOIN transfer t ON t.id = o.transfer_id
 WHERE o.holder LIKE %(pattern)s
 ORDER BY o.transfer_id;

-- name: trial_balance
-- Every transfer debits what it credits, so each currency must sum to zero.
SELECT currency,
       sum(debits_posted - credits_posted)::numeric(38,0)   AS posted_difference,
       sum(debits_pending - credits_pending)::numeric(38,0) AS pending_difference
  FROM account
 GROUP BY currency;

-- name: replay_transfers
-- Every transfer once, beside the hold that it resolves, summed by the two accounts and by a
-- stretch of 262,144 numbers; from these sums follow, each as rows of its own `kind`:
--   total    how many there are, how many hold money, resolve a hold, do not fit theirs; and the
--            fingerprint of what is held and not resolved, which must be that of `open_hold`
--   account  whose counters are not what its transfers say
--   stretch  of a prepaid account, where all that lowers its balance is more than it began with:
--            only there it may have been below zero in between
WITH pair AS MATERIALIZED (
    SELECT t.debit_account, t.credit_account, t.sequence >> 18 AS stretch,
           sum(CASE t.kind WHEN 'pending' THEN t.amount_nanos
                           WHEN 'posted'  THEN 0 ELSE coalesce(-p.amount_nanos, 0) END) AS pending,
           sum(CASE t.kind WHEN 'pending' THEN 0 ELSE t.amount_nanos END) AS posted,
           sum(greatest(t.amount_nanos - coalesce(p.amount_nanos, 0), 0)) AS lowered,
           count(*) AS transfers,
           count(*) FILTER (WHERE t.pending_id IS NOT NULL
                              AND (p.id IS NULL
                                   OR t.amount_nanos > p.amount_nanos
                                   OR t.debit_account <> p.debit_account
                                   OR t.credit_account <> p.credit_account)) AS wrong,
           sum(CASE WHEN t.kind = 'pending' THEN uuid_hash_extended(t.id, %(seed)s)::numeric
                    WHEN t.pending_id IS NOT NULL THEN -uuid_hash_extended(t.pending_id, %(seed)s)::numeric
                    ELSE 0 END) AS fingerprint
      FROM transfer t
      LEFT JOIN (SELECT id, debit_account, credit_account, amount_nanos
                   FROM transfer WHERE kind = 'pending') p ON p.id = t.pending_id
     GROUP BY 1, 2, 3
), side AS (
    SELECT debit_account AS account, stretch, pending AS debits_pending, posted AS debits_posted,
           0 AS credits_pending, 0 AS credits_posted, -pending - posted AS change, lowered
      FROM pair
    UNION ALL
    SELECT credit_account, stretch, 0, 0, pending, posted, posted, 0
      FROM pair
), walked AS (
    SELECT account, stretch, sum(lowered) AS lowered,
           sum(sum(change)) OVER (PARTITION BY account ORDER BY stretch) - sum(change) AS began_with
      FROM side
     GROUP BY account, stretch
), derived AS (
    SELECT account, sum(debits_pending) AS debits_pending, sum(debits_posted) AS debits_posted,
           sum(credits_pending) AS credits_pending, sum(credits_posted) AS credits_posted
      FROM side
     GROUP BY account
)
SELECT 'total' AS kind, NULL AS code, NULL AS account,
       coalesce(sum(transfers), 0)::bigint AS transfers, coalesce(sum(wrong), 0)::bigint AS wrong,
       coalesce(sum(fingerprint), 0) = (SELECT coalesce(sum(uuid_hash_extended(transfer_id, %(seed)s)::numeric), 0)
                                          FROM open_hold) AS all_open,
       NULL::bigint AS stretch, NULL::numeric AS began_with,
       NULL::numeric AS debits_pending, NULL::numeric AS debits_posted,
       NULL::numeric AS credits_pending, NULL::numeric AS credits_posted,
       NULL::numeric AS derived_debits_pending, NULL::numeric AS derived_debits_posted,
       NULL::numeric AS derived_credits_pending, NULL::numeric AS derived_credits_posted
  FROM pair
UNION ALL
SELECT 'account', a.code, a.id, NULL, NULL, NULL, NULL, NULL,
       a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted,
       coalesce(d.debits_pending, 0), coalesce(d.debits_posted, 0),
       coalesce(d.credits_pending, 0), coalesce(d.credits_posted, 0)
  FROM account a
  LEFT JOIN derived d ON d.account = a.id
 WHERE (a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted)
       <> (coalesce(d.debits_pending, 0), coalesce(d.debits_posted, 0),
           coalesce(d.credits_pending, 0), coalesce(d.credits_posted, 0))
UNION ALL
SELECT 'stretch', a.code, a.id, NULL, NULL, NULL, w.stretch, w.began_with,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM walked w
  JOIN account a ON a.id = w.account AND a.prepaid
 WHERE w.began_with < w.lowered;

-- name: find_overspent_moments
-- Replays stretches of prepaid accounts in the order of their transfers: credits less debits less
-- holds must never have been below zero, not even between two transfers.
SELECT s.code, m.sequence, m.available::numeric(38,0) AS available
  FROM unnest(%(codes)s::text[], %(accounts)s::bigint[], %(stretches)s::bigint[],
              %(began_with)s::numeric[]) AS s(code, account, stretch, began_with),
       LATERAL (
           SELECT e.sequence, s.began_with + sum(e.change) OVER (ORDER BY e.sequence) AS available
             FROM (SELECT t.sequence, coalesce(p.amount_nanos, 0) - t.amount_nanos AS change
                     FROM transfer t
                     LEFT JOIN transfer p ON p.id = t.pending_id
                    WHERE t.debit_account = s.account
                      AND t.sequence BETWEEN s.stretch << 18 AND (s.stretch << 18) + 262143
                   UNION ALL
                   SELECT t.sequence, t.amount_nanos
                     FROM transfer t
                    WHERE t.credit_account = s.account AND t.kind <> 'pending'
                      AND t.sequence BETWEEN s.stretch << 18 AND (s.stretch << 18) + 262143
                  ) AS e
       ) AS m
 WHERE m.available < 0
 ORDER BY m.sequence
 LIMIT 100;

-- name: find_wrong_resolutions
-- A resolution of no hold, that posts more than was held, or moves between other accounts.
SELECT t.id, t.pending_id
  FROM transfer t
  LEFT JOIN transfer p ON p.id = t.pending_id AND p.kind = 'pending'
 WHERE t.pending_id IS NOT NULL
   AND (p.id IS NULL
        OR t.amount_nanos > p.amount_nanos
        OR t.debit_account <> p.debit_account
        OR t.credit_account <> p.credit_account)
 LIMIT 100;

-- name: find_wrong_open_holds
-- open_hold must name exactly the pending transfers that nothing has resolved, and nothing may
-- resolve one twice.
SELECT coalesce(o.transfer_id, t.id) AS id,
       CASE WHEN o.transfer_id IS NULL THEN 'unresolved but not open' ELSE 'open but resolved' END AS problem
  FROM (SELECT p.id
          FROM transfer p
         WHERE p.kind = 'pending'
           AND NOT EXISTS (SELECT FROM transfer r WHERE r.pending_id = p.id)) t
  FULL JOIN open_hold o ON o.transfer_id = t.id
 WHERE o.transfer_id IS NULL OR t.id IS NULL
UNION ALL
SELECT pending_id, 'resolved ' || count(*) || ' times'
  FROM transfer
 WHERE pending_id IS NOT NULL
 GROUP BY pending_id
HAVING count(*) > 1
 LIMIT 100;

-- name: find_overdue_holds
SELECT transfer_id, holder, expires_at
  FROM open_hold
 WHERE expires_at < %(before)s
 LIMIT 100;

-- name: count_accounts
SELECT (SELECT count(*) FROM account)               AS accounts,
       (SELECT count(*) FROM account WHERE prepaid) AS prepaid_accounts,
       (SELECT count(*) FROM open_hold)             AS open_holds;

-- name: find_missing_guards
-- Tables of record whose guards are missing or switched off.
SELECT wanted.name
  FROM unnest(%(tables)s::text[]) AS wanted(name)
 WHERE 2 > (SELECT count(*)
              FROM pg_trigger g
             WHERE g.tgrelid = to_regclass(wanted.name)
               AND g.tgname IN ('the_past_stands', 'the_past_is_not_cut')
               AND g.tgenabled IN ('O', 'A'));

-- name: list_movements
-- What moved money in or out of an account, newest first: holds and their voids are no movements.
SELECT t.id, t.reason, t.happened_at, t.sequence,
       CASE WHEN t.debit_account = a.id THEN -t.amount_nanos ELSE t.amount_nanos END AS amount_nanos
  FROM account a
  JOIN transfer t ON a.id IN (t.debit_account, t.credit_account)
 WHERE a.code = %(code)s
   AND t.kind IN ('posted', 'post')
   AND (%(before)s::bigint IS NULL OR t.sequence < %(before)s)
 ORDER BY t.sequence DESC
 LIMIT %(limit)s;

-- name: list_accounts
SELECT id, code, currency, prepaid,
       debits_pending, debits_posted, credits_pending, credits_posted
  FROM account
 ORDER BY code COLLATE "C";

-- name: list_all_movements
-- What moved money, oldest first, to be read through a cursor: it may be millions.
SELECT id, sequence, pending_id, debit_account, credit_account, amount_nanos, reason,
       happened_at, recorded_at
  FROM transfer
 WHERE kind IN ('posted', 'post')
 ORDER BY sequence;

-- name: any_held
SELECT transfer_id FROM open_hold LIMIT 1;
