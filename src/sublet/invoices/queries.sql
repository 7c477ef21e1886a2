-- name: put_profile
INSERT INTO billing_profile (tenant_id, legal_name, address, tax_id, jurisdiction, currency, email,
                             terms_days, time_zone, threshold_nanos, country, endpoint, reference)
VALUES (%(tenant_id)s, %(legal_name)s, %(address)s, %(tax_id)s, %(jurisdiction)s, %(currency)s,
        %(email)s, %(terms_days)s, %(time_zone)s, %(threshold_nanos)s, %(country)s, %(endpoint)s,
        %(reference)s)
    ON CONFLICT (tenant_id) DO UPDATE
   SET legal_name = EXCLUDED.legal_name, address = EXCLUDED.address, tax_id = EXCLUDED.tax_id,
       jurisdiction = EXCLUDED.jurisdiction, currency = EXCLUDED.currency, email = EXCLUDED.email,
       terms_days = EXCLUDED.terms_days, time_zone = EXCLUDED.time_zone,
       threshold_nanos = EXCLUDED.threshold_nanos, country = EXCLUDED.country,
       endpoint = EXCLUDED.endpoint, reference = EXCLUDED.reference;

-- name: get_profile
SELECT * FROM billing_profile WHERE tenant_id = %(tenant_id)s;

-- name: insert_tax
INSERT INTO tax_rate (jurisdiction, name, percent, valid_from, valid_until, happened_at, recorded_at)
VALUES (%(jurisdiction)s, %(name)s, %(percent)s, %(valid_from)s, %(valid_until)s,
        (%(valid_from)s::date)::timestamp AT TIME ZONE 'UTC', %(now)s);

-- name: list_taxes
SELECT jurisdiction, name, percent, valid_from, valid_until FROM tax_rate
 ORDER BY jurisdiction, valid_from;

-- name: insert_exchange_rate
INSERT INTO exchange_rate (currency, day, unit_nanos, source, happened_at, recorded_at)
VALUES (%(currency)s, %(day)s, %(unit_nanos)s, %(source)s,
        (%(day)s::date)::timestamp AT TIME ZONE 'UTC', %(now)s)
    ON CONFLICT (currency, day) DO NOTHING
RETURNING day;

-- name: get_exchange_rate
SELECT unit_nanos FROM exchange_rate WHERE currency = %(currency)s AND day = %(day)s;

-- name: lock_numbers
-- One series: whoever issues waits for who issues now, so that no number is left out.
SELECT pg_advisory_xact_lock(7355608012);

-- name: next_number
SELECT coalesce(max(number), 0) + 1 AS number FROM invoice;

-- name: get_marks
-- How far the records are sealed: nothing that is still being written lies below.
SELECT coalesce(max(last) FILTER (WHERE table_name = 'charge'), 0) AS charge_mark,
       coalesce(max(last) FILTER (WHERE table_name = 'credit'), 0) AS credit_mark,
       coalesce(max(last) FILTER (WHERE table_name = 'transfer'), 0) AS transfer_mark
  FROM seal
 WHERE table_name IN ('charge', 'credit', 'transfer');

-- name: list_charge_lines
-- Charges that no earlier invoice has, alike ones together. `before` is the end of the last one.
SELECT p.sku, p.nanos AS rate_nanos, p.per AS rate_per, coalesce(k.name, '') AS key,
       coalesce(l.pool, r.pool, '') AS pool,
       CASE WHEN u.model IS NOT NULL THEN ''
            WHEN u.lease_id IS NOT NULL THEN l.tier
            WHEN r.contract_id IS NOT NULL THEN 'contract'
            ELSE 'reserved' END AS tier,
       coalesce(u.model, '') AS model,
       coalesce(nullif((SELECT g.tags::text FROM tagging g
                         WHERE g.subject = coalesce(u.lease_id, u.reservation_id, u.api_key_id)
                           AND g.happened_at <= c.happened_at
                         ORDER BY g.happened_at DESC, g.record DESC LIMIT 1), '{}'), '') AS tags,
       sum(part.quantity)::numeric(38,0) AS quantity,
       sum(part.amount_nanos)::numeric(38,0) AS amount_nanos
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  CROSS JOIN LATERAL unnest(c.price_ids, c.quantities, c.amounts)
             AS part(price_id, quantity, amount_nanos)
  JOIN price p ON p.id = part.price_id
  LEFT JOIN lease l ON l.id = u.lease_id
  LEFT JOIN reservation r ON r.id = u.reservation_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
 WHERE c.tenant_id = %(tenant_id)s AND c.record <= %(charge_mark)s AND c.happened_at < %(ends_at)s
   AND NOT (c.record <= %(old_charge_mark)s AND c.happened_at < %(before)s)
 GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
 ORDER BY 7, 5, 6, 1, 4, 8, 2, 3;

-- name: list_credit_lines
SELECT coalesce(l.pool, r.pool, '') AS pool,
       CASE WHEN r.contract_id IS NOT NULL THEN 'contract'
            WHEN r.id IS NOT NULL THEN 'reserved' ELSE l.tier END AS tier,
       c.transfer_id, c.amount_nanos, c.gpus, c.happened_at, c.promised_until
  FROM credit c
  LEFT JOIN lease l ON l.id = c.lease_id
  LEFT JOIN reservation r ON r.id = c.reservation_id
 WHERE c.tenant_id = %(tenant_id)s AND c.record <= %(credit_mark)s AND c.happened_at < %(ends_at)s
   AND NOT (c.record <= %(old_credit_mark)s AND c.happened_at < %(before)s)
 ORDER BY c.record;

-- name: list_other_lines
-- What else moved the tenant's revenue account: minimums, shares of resales, corrections.
SELECT t.reason, t.id,
       CASE WHEN t.credit_account = a.id THEN t.amount_nanos ELSE -t.amount_nanos END AS amount_nanos
  FROM transfer t
  JOIN account a ON a.id IN (t.debit_account, t.credit_account)
 WHERE a.code = %(revenue)s AND t.kind IN ('posted', 'post')
   AND t.reason NOT IN ('tokens', 'lease', 'credit', 'credit_note')
   AND t.sequence <= %(transfer_mark)s AND t.happened_at < %(ends_at)s
   AND NOT (t.sequence <= %(old_transfer_mark)s AND t.happened_at < %(before)s)
 ORDER BY t.sequence;

-- name: insert_invoice
INSERT INTO invoice (id, number, kind, corrects, tenant_id, starts_at, ends_at, charge_mark,
                     credit_mark, transfer_mark, net_nanos, tax_nanos, rounding_nanos,
                     prepaid_nanos, currency, unit_nanos, profile, tax, lines, due_on, happened_at,
                     recorded_at)
VALUES (%(id)s, %(number)s, %(kind)s, %(corrects)s, %(tenant_id)s, %(starts_at)s, %(ends_at)s,
        %(charge_mark)s, %(credit_mark)s, %(transfer_mark)s, %(net_nanos)s, %(tax_nanos)s,
        %(rounding_nanos)s, %(prepaid_nanos)s, %(currency)s, %(unit_nanos)s, %(profile)s, %(tax)s,
        %(lines)s, %(due_on)s, %(issued_at)s, %(issued_at)s);

-- name: insert_event
INSERT INTO invoice_event (invoice_id, state, detail, happened_at, recorded_at)
VALUES (%(invoice_id)s, %(state)s, %(detail)s, %(now)s, %(now)s);

-- name: list_invoices
-- Newest first; with the state that it came to last.
SELECT i.*, e.state
  FROM invoice i
  JOIN LATERAL (SELECT state FROM invoice_event WHERE invoice_id = i.id
                 ORDER BY record DESC LIMIT 1) AS e ON true
 WHERE (%(tenant_id)s::uuid IS NULL OR i.tenant_id = %(tenant_id)s)
   AND (%(id)s::uuid IS NULL OR i.id = %(id)s)
   AND (%(number)s::bigint IS NULL OR i.number = %(number)s)
 ORDER BY i.number DESC
 LIMIT %(limit)s;

-- name: list_last
-- The tenant's invoices that stand, the latest period first.
SELECT i.id, i.starts_at, i.ends_at, i.charge_mark, i.credit_mark, i.transfer_mark
  FROM invoice i
 WHERE i.tenant_id = %(tenant_id)s AND i.kind = 'invoice'
   AND NOT EXISTS (SELECT FROM invoice_event e WHERE e.invoice_id = i.id AND e.state = 'void')
 ORDER BY i.ends_at DESC;

-- name: sum_corrections
SELECT coalesce(sum(net_nanos), 0) AS net_nanos FROM invoice WHERE corrects = %(id)s;

-- name: audit_invoices
-- Every invoice, with what its lines add up to, for `sublet verify`.
SELECT i.id, i.number, i.kind, i.net_nanos, i.tax_nanos, i.rounding_nanos,
       (SELECT coalesce(sum((line->>'amount_nanos')::numeric), 0)
          FROM json_array_elements(i.lines) AS line) AS lines_nanos,
       (SELECT count(*) FROM invoice_event e WHERE e.invoice_id = i.id AND e.state = 'issued') AS issued
  FROM invoice i
 ORDER BY i.number;

-- name: audit_coverage
-- By tenant: what its standing invoices bill, and what its revenue account has taken up to where
-- the last of them looked. Credit notes have transfers of their own.
WITH standing AS (
    SELECT i.* FROM invoice i
     WHERE i.kind = 'invoice'
       AND NOT EXISTS (SELECT FROM invoice_event e WHERE e.invoice_id = i.id AND e.state = 'void')
), last AS (
    SELECT DISTINCT ON (tenant_id) tenant_id, ends_at, charge_mark, credit_mark, transfer_mark
      FROM standing ORDER BY tenant_id, ends_at DESC
)
SELECT l.tenant_id,
       (SELECT sum(net_nanos) FROM standing s WHERE s.tenant_id = l.tenant_id) AS billed,
       (SELECT coalesce(sum(amount_nanos), 0) FROM charge c
         WHERE c.tenant_id = l.tenant_id AND c.record <= l.charge_mark AND c.happened_at < l.ends_at)
       - (SELECT coalesce(sum(amount_nanos), 0) FROM credit c
           WHERE c.tenant_id = l.tenant_id AND c.record <= l.credit_mark AND c.happened_at < l.ends_at)
       + (SELECT coalesce(sum(CASE WHEN t.credit_account = a.id THEN t.amount_nanos
                                   ELSE -t.amount_nanos END), 0)
            FROM transfer t JOIN account a ON a.id IN (t.debit_account, t.credit_account)
           WHERE a.code = 'tenant:' || l.tenant_id || ':revenue' AND t.kind IN ('posted', 'post')
             AND t.reason NOT IN ('tokens', 'lease', 'credit', 'credit_note')
             AND t.sequence <= l.transfer_mark AND t.happened_at < l.ends_at) AS used
  FROM last l;

-- name: get_event
SELECT detail, happened_at FROM invoice_event WHERE invoice_id = %(id)s AND state = %(state)s;

-- name: list_usage
-- What was charged within [start, end), by what was asked for; without the rest.
SELECT CASE WHEN %(by_day)s THEN to_char(c.happened_at AT TIME ZONE %(zone)s, 'YYYY-MM-DD') END AS day,
       CASE WHEN %(by_product)s THEN CASE WHEN u.model IS NOT NULL THEN 'model'
            WHEN u.lease_id IS NOT NULL THEN l.tier
            WHEN r.contract_id IS NOT NULL THEN 'contract' ELSE 'reserved' END END AS product,
       CASE WHEN %(by_model)s THEN coalesce(u.model, '') END AS model,
       CASE WHEN %(by_pool)s THEN coalesce(l.pool, r.pool, '') END AS pool,
       CASE WHEN %(by_key)s THEN coalesce(k.name, '') END AS key,
       CASE WHEN %(by_lease)s THEN coalesce(u.lease_id::text, '') END AS lease,
       CASE WHEN %(by_tag)s::text IS NOT NULL THEN coalesce(g.tags ->> %(by_tag)s::text, '') END AS tag,
       sum(c.amount_nanos) AS amount_nanos, sum(u.gpu_seconds) AS gpu_seconds, count(*) AS charges,
       sum(u.input_tokens + u.cache_read_tokens + u.cache_write_tokens) AS input_tokens,
       sum(u.output_tokens + u.reasoning_tokens) AS output_tokens
  FROM charge c
  JOIN usage u ON u.id = c.usage_id
  LEFT JOIN lease l ON l.id = u.lease_id
  LEFT JOIN reservation r ON r.id = u.reservation_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
  LEFT JOIN LATERAL (
       SELECT tags FROM tagging
        WHERE subject = coalesce(u.lease_id, u.reservation_id, u.api_key_id)
          AND tagging.happened_at <= c.happened_at
        ORDER BY tagging.happened_at DESC, record DESC LIMIT 1) AS g ON true
 WHERE c.tenant_id = %(tenant_id)s AND c.happened_at >= %(start)s AND c.happened_at < %(end)s
   AND (%(model)s::text IS NULL OR u.model = %(model)s)
   AND (%(pool)s::text IS NULL OR coalesce(l.pool, r.pool) = %(pool)s)
   AND (%(key)s::text IS NULL OR k.name = %(key)s)
   AND (%(lease)s::uuid IS NULL OR u.lease_id = %(lease)s)
   AND (%(tag_name)s::text IS NULL OR g.tags ->> %(tag_name)s::text = %(tag_value)s)
 GROUP BY 1, 2, 3, 4, 5, 6, 7
 ORDER BY 1, 2, 3, 4, 5, 6, 7
 LIMIT %(limit)s OFFSET %(offset)s;

-- name: insert_outgoing
INSERT INTO outgoing (id, tenant_id, channel, target, subject, body, invoice_id, made_at, next_at)
VALUES (%(id)s, %(tenant_id)s, %(channel)s, %(target)s, %(subject)s, %(body)s, %(invoice_id)s, %(now)s,
        %(now)s)
    ON CONFLICT (id) DO NOTHING;

-- name: claim_outgoing
-- What is due now; nobody else takes it until then.
UPDATE outgoing o SET attempts = attempts + 1, next_at = %(until)s
  FROM (SELECT id FROM outgoing
         WHERE outcome IS NULL AND next_at <= %(now)s AND channel = ANY(%(channels)s)
         ORDER BY next_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED) AS due
 WHERE o.id = due.id
RETURNING o.*;

-- name: note_outgoing
UPDATE outgoing SET outcome = %(outcome)s, next_at = coalesce(%(next_at)s, next_at), detail = %(detail)s
 WHERE id = %(id)s;

-- name: list_outgoing
SELECT * FROM outgoing WHERE tenant_id = %(tenant_id)s ORDER BY made_at DESC, id LIMIT %(limit)s;

-- name: delete_dunning_steps
DELETE FROM dunning_step;

-- name: insert_dunning_step
INSERT INTO dunning_step (days, action) VALUES (%(days)s, %(action)s);

-- name: list_dunning_steps
SELECT days, action FROM dunning_step ORDER BY days;

-- name: list_unpaid
-- Invoices that are due, the oldest first, with how far they were dunned.
SELECT i.id, i.number, i.due_on,
       (SELECT array_agg(d.days) FROM dunning_event d WHERE d.invoice_id = i.id) AS done
  FROM invoice i
  JOIN LATERAL (SELECT state FROM invoice_event WHERE invoice_id = i.id
                 ORDER BY record DESC LIMIT 1) AS e ON e.state = 'issued'
 WHERE i.tenant_id = %(tenant_id)s AND i.kind = 'invoice'
   AND i.net_nanos + i.tax_nanos + i.rounding_nanos > i.prepaid_nanos
 ORDER BY i.number;

-- name: insert_dunning_event
INSERT INTO dunning_event (invoice_id, days, action, happened_at, recorded_at)
VALUES (%(invoice_id)s, %(days)s, %(action)s, %(now)s, %(now)s)
    ON CONFLICT (invoice_id, days) DO NOTHING
RETURNING days;

-- name: has_been_suspended_for
-- Whether an invoice that is still due led to a suspension.
SELECT EXISTS (SELECT FROM dunning_event WHERE invoice_id = ANY(%(ids)s) AND action = 'suspend') AS found;

-- name: insert_suspension
INSERT INTO suspension (tenant_id, since) VALUES (%(tenant_id)s, %(now)s) ON CONFLICT DO NOTHING;

-- name: delete_suspension
DELETE FROM suspension WHERE tenant_id = %(tenant_id)s RETURNING since;

-- name: get_suspension
SELECT since FROM suspension WHERE tenant_id = %(tenant_id)s;

-- name: put_budget
INSERT INTO budget (id, tenant_id, name, amount_nanos, key, tag_name, tag_value, percents, email, webhook)
VALUES (%(id)s, %(tenant_id)s, %(name)s, %(amount_nanos)s, %(key)s, %(tag_name)s, %(tag_value)s,
        %(percents)s, %(email)s, %(webhook)s)
    ON CONFLICT (tenant_id, name) DO UPDATE
   SET amount_nanos = EXCLUDED.amount_nanos, key = EXCLUDED.key, tag_name = EXCLUDED.tag_name,
       tag_value = EXCLUDED.tag_value, percents = EXCLUDED.percents, email = EXCLUDED.email,
       webhook = EXCLUDED.webhook;

-- name: list_budgets
SELECT * FROM budget WHERE %(tenant_id)s::uuid IS NULL OR tenant_id = %(tenant_id)s
 ORDER BY tenant_id, name;

-- name: delete_budget
DELETE FROM budget WHERE tenant_id = %(tenant_id)s AND name = %(name)s RETURNING id;

-- name: list_alerts
SELECT percent FROM budget_alert WHERE budget_id = %(id)s AND month = %(month)s;

-- name: insert_alert
INSERT INTO budget_alert (budget_id, month, percent, spent_nanos, happened_at, recorded_at)
VALUES (%(id)s, %(month)s, %(percent)s, %(spent_nanos)s, %(now)s, %(now)s)
    ON CONFLICT (budget_id, month, percent) DO NOTHING
RETURNING percent;
