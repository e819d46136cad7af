-- The statements that only SQLite runs.

-- name: is_migrated
SELECT count(*) FROM sqlite_master WHERE name = 'schema_version';

-- name: book_events
-- Statements for many rows have `?` in the order of the rows' values: values by name take as long again to bind.
INSERT INTO events (
    event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
    "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
    unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at, once, posted,
    end_user, safety_id, tags, metadata, upstream_ids, upstream_usd, mode,
    handed, route_provider, route_upstream, route_usd_per_image
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?
);

-- name: book_consumption
INSERT INTO credit_transactions (id, org_id, type, amount_micro_mxn, at) VALUES (?, ?, 'consumption', ?, ?);

-- name: add_results
INSERT INTO results (request_id, org_id, ended_us, document) VALUES (?, ?, ?, ?)
ON CONFLICT DO NOTHING;

-- name: keep_balances
INSERT INTO month_balances (
    month, org_id, opening_micro_mxn, recharges_micro_mxn, bonuses_micro_mxn, refunds_micro_mxn, adjustments_micro_mxn,
    chargebacks_micro_mxn, charges_micro_mxn, orders, images, closing_micro_mxn
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: claim_outbox
UPDATE outbox SET next_at = :lease, attempts = attempts + 1
WHERE sink = :sink AND (id, kind) IN (
    SELECT o.id, o.kind FROM outbox AS o WHERE o.sink = :sink AND o.set_aside_at IS NULL AND o.next_at <= :now
        AND (o.kind = 'charge' OR NOT EXISTS (
            SELECT 1 FROM outbox AS c
            WHERE c.sink = :sink AND c.id = o.order_id AND c.kind = 'charge' AND c.set_aside_at IS NULL
        ))
    ORDER BY o.next_at LIMIT :page
) RETURNING id, kind, attempts;

-- name: delivered
DELETE FROM outbox
WHERE sink = :sink AND kind = :kind
    AND id IN (SELECT value FROM json_each(:ids));

-- name: send_later
-- Only for whoever still has it: another sends it if this one took too long.
UPDATE outbox SET next_at = :next_at, error = :error
WHERE sink = :sink AND kind = :kind
    AND id IN (SELECT value FROM json_each(:ids))
    AND next_at = :lease;

-- name: set_item_aside
UPDATE outbox SET set_aside_at = :at, error = :error
WHERE sink = :sink AND kind = :kind
    AND id IN (SELECT value FROM json_each(:ids))
    AND next_at = :lease AND set_aside_at IS NULL;

-- name: tell_end_users
-- Not those that were erased since: the order is from before.
INSERT INTO end_users (org_id, pseudonym, value, at)
SELECT t.org_id, t.pseudonym, t.value, t.at
FROM (SELECT ? AS org_id, ? AS pseudonym, ? AS value, ? AS at) AS t
WHERE NOT EXISTS (
    SELECT 1 FROM audit AS a
    WHERE a.org_id = t.org_id AND a.action = 'enduser.erase' AND a.target = t.pseudonym AND a.at >= t.at
)
ON CONFLICT DO NOTHING;

-- name: provider_sums
-- By the columns of `HourSum`. What a provider says is summed by Python: SQLite's own sum of decimal text is a float.
SELECT
    coalesce(route_provider, provider), coalesce(route_upstream, upstream), admitted_us / 3600000000,
    ended_us / 3600000000, "end" = 'charge', quantity = images_asked, usd_measured IS NOT NULL,
    coalesce(route_usd_per_image, usd_per_image), sum_usd(coalesce(upstream_usd, usd_measured)), sum(quantity),
    sum(images_asked)
FROM events AS e
WHERE month IN (SELECT value FROM json_each(:ids)) AND ended_us >= :first_us AND admitted_us < :end_us
    AND ("end" = 'charge' OR NOT EXISTS (SELECT 1 FROM events AS c WHERE c.event_id = e.event_id AND c."end" = 'charge'))
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, coalesce(upstream_usd, usd_measured) IS NOT NULL;

-- name: month_tags
-- Of the orders that are posted to their own month, as `month_use`: the tags that cost most, each with how many there are.
SELECT
    name, CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount) AS BIGINT), count(*) OVER ()
FROM (
    SELECT name, orders, images, amount_micro_mxn AS amount FROM usage_of
    WHERE org_id = :org_id AND day BETWEEN :first AND :last AND kind = 'tag'
    UNION ALL
    SELECT tag.value, -1, -quantity, -amount_micro_mxn FROM events, json_each(tags) AS tag
    WHERE posted > :month AND CAST(org_id AS TEXT) = :org_id AND CAST(month AS TEXT) = :month AND tags IS NOT NULL
        AND "end" = 'charge'
) AS posts GROUP BY name HAVING sum(orders) > 0 ORDER BY 4 DESC, name LIMIT :most;

-- name: add_webhook_deliveries
INSERT INTO webhook_deliveries (
    id, org_id, webhook_id, url, server, type, subject, body, at, state, since, next_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING;

-- name: claim_webhooks
-- Of each server at most `per_server`, and of one that fails a single one. Only the first in turn are looked at: what a
-- server without an answer piles up is passed over, and not sorted.
WITH head AS (
    SELECT id, org_id || ' ' || server AS lane, next_at FROM webhook_deliveries
    WHERE state = 'waiting' AND next_at <= :now
        AND org_id || ' ' || server NOT IN (SELECT value FROM json_each(:busy))
    ORDER BY next_at LIMIT :head
), turns AS (
    SELECT id, lane, row_number() OVER (PARTITION BY lane ORDER BY next_at, id) AS turn FROM head
)
UPDATE webhook_deliveries SET next_at = :lease, attempts = attempts + 1
WHERE id IN (
    SELECT id FROM turns
    WHERE turn <= CASE WHEN lane IN (SELECT value FROM json_each(:failing)) THEN 1 ELSE :per_server END
    ORDER BY turn LIMIT :page
) RETURNING id, org_id, url, server, type, body, since, attempts;
