-- The records as FOCUS wants them. Amounts and prices are written as decimals of USD: all of it is
-- exact, or rounded once where a unit price or a quantity has no end (a second is 1/3600 of an hour).

-- name: list_documents
-- Invoices and credit notes, voided ones too, in the order of their numbers; without their lines.
SELECT i.id, i.number, i.kind, i.corrects, i.tenant_id, t.name AS tenant, i.starts_at, i.ends_at,
       i.charge_mark, i.credit_mark, i.transfer_mark, i.net_nanos, i.tax_nanos, i.rounding_nanos,
       i.profile ->> 'time_zone' AS time_zone, i.profile ->> 'terms_days' AS terms_days,
       i.tax, i.happened_at, i.due_on, e.state, e.happened_at AS since
  FROM invoice i
  JOIN tenant t ON t.id = i.tenant_id
  JOIN LATERAL (SELECT state, happened_at FROM invoice_event WHERE invoice_id = i.id
                 ORDER BY record DESC LIMIT 1) AS e ON true
 WHERE %(tenant_id)s::uuid IS NULL OR i.tenant_id = %(tenant_id)s
 ORDER BY i.number;

-- name: get_lines
SELECT lines FROM invoice WHERE id = %(id)s;

-- name: list_customers
SELECT t.id, t.name, coalesce(b.time_zone, 'UTC') AS time_zone
  FROM tenant t
  LEFT JOIN billing_profile b ON b.tenant_id = t.id
 WHERE t.kind = 'customer' AND (%(tenant_id)s::uuid IS NULL OR t.id = %(tenant_id)s)
 ORDER BY t.name;

-- name: copy_tokens
-- One row a line of a charge for a model's tokens. What a tenant's own rate would be by the list
-- is looked up; other rates are the list's.
COPY (
SELECT concat_ws(E'\x1f', p.sku, p.nanos, p.per, coalesce(k.name, ''), '', '', u.model, p.id,
                 coalesce(k.id::text, ''),
                 coalesce(nullif((SELECT g.tags::text FROM tagging g
                         WHERE g.subject = coalesce(u.lease_id, u.reservation_id, u.api_key_id)
                           AND g.happened_at <= c.happened_at
                         ORDER BY g.happened_at DESC, g.record DESC LIMIT 1), '{}'), '')) AS shape,
       c.usage_id, u.model AS resource, NULL AS contract, NULL AS status,
       to_char(c.happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS starts,
       to_char(c.happened_at AT TIME ZONE 'UTC' + interval '1 second', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS ends,
       trim_scale(c.amount * 0.000000001) AS billed, trim_scale(q.quantity) AS quantity,
       trim_scale(q.list) AS list_price, trim_scale(q.price) AS price,
       trim_scale(q.list * q.quantity) AS list_cost, trim_scale(q.price * q.quantity) AS cost,
       NULL AS applied
  FROM (SELECT usage_id, happened_at, record, unnest(price_ids) AS price_id,
               unnest(quantities) AS quantity, unnest(amounts) AS amount
          FROM charge
         WHERE tenant_id = %(tenant_id)s AND record <= %(mark)s AND happened_at < %(ends_at)s
           AND happened_at >= %(starts_at)s
           AND NOT (record <= %(old_mark)s AND happened_at < %(before)s)) AS c
  JOIN usage u ON u.id = c.usage_id AND u.model IS NOT NULL
  JOIN price p ON p.id = c.price_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
  CROSS JOIN LATERAL (
       SELECT c.quantity * 0.000001 AS quantity, round(p.nanos * 0.001 / p.per, 12) AS price,
              CASE WHEN p.tenant_id IS NULL THEN round(p.nanos * 0.001 / p.per, 12)
                   ELSE coalesce((SELECT round(o.nanos * 0.001 / o.per, 12) FROM price o
                                   WHERE o.sku = p.sku AND o.tenant_id IS NULL
                                     AND o.happened_at <= c.happened_at
                                   ORDER BY o.happened_at DESC, o.id DESC LIMIT 1),
                                 round(p.nanos * 0.001 / p.per, 12)) END AS list) AS q
) TO STDOUT (FORMAT csv);

-- name: copy_leases
COPY (
SELECT concat_ws(E'\x1f', p.sku, p.nanos, p.per, coalesce(k.name, ''), l.pool, l.tier, '', p.id,
                 coalesce(k.id::text, ''),
                 coalesce(nullif((SELECT g.tags::text FROM tagging g
                         WHERE g.subject = coalesce(u.lease_id, u.reservation_id, u.api_key_id)
                           AND g.happened_at <= c.happened_at
                         ORDER BY g.happened_at DESC, g.record DESC LIMIT 1), '{}'), '')) AS shape,
       c.usage_id, l.id AS resource, NULL AS contract, NULL AS status,
       to_char((c.happened_at - make_interval(secs => greatest(u.gpu_seconds::float8 / l.gpus, 1)))
               AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS starts,
       to_char(c.happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS ends,
       trim_scale(c.amount * 0.000000001) AS billed, trim_scale(q.quantity) AS quantity,
       trim_scale(q.list) AS list_price, trim_scale(q.price) AS price,
       trim_scale(q.list * q.quantity) AS list_cost, trim_scale(q.price * q.quantity) AS cost,
       NULL AS applied
  FROM (SELECT usage_id, happened_at, record, unnest(price_ids) AS price_id,
               unnest(quantities) AS quantity, unnest(amounts) AS amount
          FROM charge
         WHERE tenant_id = %(tenant_id)s AND record <= %(mark)s AND happened_at < %(ends_at)s
           AND happened_at >= %(starts_at)s
           AND NOT (record <= %(old_mark)s AND happened_at < %(before)s)) AS c
  JOIN usage u ON u.id = c.usage_id
  JOIN lease l ON l.id = u.lease_id
  JOIN price p ON p.id = c.price_id
  LEFT JOIN price o ON o.id = l.list_price_id
  LEFT JOIN api_key k ON k.id = u.api_key_id
  CROSS JOIN LATERAL (
       SELECT round(c.quantity::numeric / 3600, 9) AS quantity,
              round(p.nanos * 0.0000036 / p.per, 9) AS price,
              round(coalesce(o.nanos, p.nanos) * 0.0000036 / coalesce(o.per, p.per), 9) AS list) AS q
) TO STDOUT (FORMAT csv);

-- name: copy_windows
-- Reserved windows and contracts: what of a block was leased is a row, and what was not another.
COPY (
SELECT concat_ws(E'\x1f', p.sku, p.nanos, p.per, '', r.pool,
                 CASE WHEN r.contract_id IS NULL THEN 'reserved' ELSE 'contract' END, '', p.id, '',
                 coalesce(nullif((SELECT g.tags::text FROM tagging g
                         WHERE g.subject = c.reservation_id
                           AND g.happened_at <= c.happened_at
                         ORDER BY g.happened_at DESC, g.record DESC LIMIT 1), '{}'), '')) AS shape,
       c.usage_id, r.id AS resource, r.contract_id AS contract, part.status,
       to_char(c.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS starts,
       to_char(c.happened_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS ends,
       trim_scale(part.amount * 0.000000001) AS billed, trim_scale(q.quantity) AS quantity,
       trim_scale(q.list) AS list_price, trim_scale(q.price) AS price,
       trim_scale(q.list * q.quantity) AS list_cost, trim_scale(q.price * q.quantity) AS cost,
       CASE WHEN r.contract_id IS NOT NULL THEN
            '{"Elements":[{"ContractId":"' || r.contract_id || '","ContractCommitmentId":"' || r.id
            || '","ContractCommitmentAppliedQuantity":' || trim_scale(q.quantity)
            || ',"ContractCommitmentAppliedUnit":"GPU-Hours"}]}' END AS applied
  FROM (SELECT c.usage_id, c.happened_at, c.record, u.reservation_id,
               c.happened_at - make_interval(secs => greatest(u.gpu_seconds::float8 / r.gpus, 1)) AS starts_at,
               unnest(price_ids) AS price_id, unnest(quantities) AS quantity, unnest(amounts) AS amount
          FROM charge c
          JOIN usage u ON u.id = c.usage_id
          JOIN reservation r ON r.id = u.reservation_id
         WHERE c.tenant_id = %(tenant_id)s AND c.record <= %(mark)s AND c.happened_at < %(ends_at)s
           AND c.happened_at >= %(starts_at)s
           AND NOT (c.record <= %(old_mark)s AND c.happened_at < %(before)s)) AS c
  JOIN reservation r ON r.id = c.reservation_id
  JOIN price p ON p.id = c.price_id
  JOIN price o ON o.id = r.list_price_id
  CROSS JOIN LATERAL (
       SELECT least(c.quantity, coalesce(round(sum(l.gpus * greatest(0, extract(epoch FROM
                    least(coalesce(l.stopped_at, c.happened_at), c.happened_at)
                    - greatest(l.running_at, c.starts_at))))), 0))::numeric AS used
         FROM lease l
        WHERE l.reservation_id = c.reservation_id AND l.running_at < c.happened_at
          AND coalesce(l.stopped_at, c.happened_at) > c.starts_at) AS leased
  CROSS JOIN LATERAL (
       VALUES ('Used', leased.used,
               CASE WHEN c.quantity = 0 THEN c.amount ELSE round(c.amount * leased.used / c.quantity) END),
              ('Unused', c.quantity - leased.used,
               CASE WHEN c.quantity = 0 THEN 0
                    ELSE c.amount - round(c.amount * leased.used / c.quantity) END)
       ) AS part(status, seconds, amount)
  CROSS JOIN LATERAL (
       SELECT round(part.seconds / 3600, 9) AS quantity,
              round(p.nanos * 0.0000036 / p.per, 9) AS price,
              round(o.nanos * 0.0000036 / o.per, 9) AS list) AS q
 WHERE part.seconds > 0 OR part.amount <> 0
) TO STDOUT (FORMAT csv);

-- name: list_credits
-- In the order of the lines of an invoice: see `list_credit_lines` of invoices.
SELECT c.lease_id, c.reservation_id, r.contract_id, coalesce(l.pool, r.pool, '') AS pool,
       c.happened_at, c.promised_until, c.amount_nanos
  FROM credit c
  LEFT JOIN lease l ON l.id = c.lease_id
  LEFT JOIN reservation r ON r.id = c.reservation_id
 WHERE c.tenant_id = %(tenant_id)s AND c.record <= %(mark)s AND c.happened_at < %(ends_at)s
   AND c.happened_at >= %(starts_at)s
   AND NOT (c.record <= %(old_mark)s AND c.happened_at < %(before)s)
 ORDER BY c.record;

-- name: list_open_movements
-- What else moved the tenant's revenue account and is on no invoice yet.
SELECT t.reason, t.id, t.happened_at,
       CASE WHEN t.credit_account = a.id THEN t.amount_nanos ELSE -t.amount_nanos END AS amount_nanos
  FROM transfer t
  JOIN account a ON a.id IN (t.debit_account, t.credit_account)
 WHERE a.code = 'tenant:' || %(tenant_id)s::text || ':revenue' AND t.kind IN ('posted', 'post')
   AND t.reason NOT IN ('tokens', 'lease', 'credit', 'credit_note')
   AND t.happened_at < %(ends_at)s AND t.happened_at >= %(starts_at)s
   AND NOT (t.sequence <= %(old_mark)s AND t.happened_at < %(before)s)
 ORDER BY t.sequence;

-- name: list_commitments
-- A row a step of a contract; and one of its minimum, where it has one.
SELECT c.id AS contract_id, c.tenant_id, c.name, c.pool, c.starts_at, c.ends_at, c.signed_at,
       c.ended_by, c.closed, c.minimum_nanos, r.id AS step_id, r.gpus, r.starts_at AS step_starts_at,
       r.ends_at AS step_ends_at,
       trim_scale(round(r.gpus * extract(epoch FROM r.ends_at - r.starts_at)::numeric / 3600, 9)) AS hours,
       trim_scale(round(p.nanos * r.gpus * extract(epoch FROM r.ends_at - r.starts_at)::numeric / p.per)
                  * 0.000000001) AS cost,
       CASE WHEN o.nanos * p.per > p.nanos * o.per
            THEN trim_scale(round(1 - p.nanos * o.per::numeric / (o.nanos * p.per), 6)) END AS discount
  FROM contract c
  JOIN reservation r ON r.contract_id = c.id
  JOIN price p ON p.id = r.price_id
  JOIN price o ON o.id = r.list_price_id
 WHERE (%(tenant_id)s::uuid IS NULL OR c.tenant_id = %(tenant_id)s)
   AND c.starts_at < %(ends_at)s AND c.ends_at > %(starts_at)s
 ORDER BY c.signed_at, c.id, r.starts_at;
