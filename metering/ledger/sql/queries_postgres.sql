-- The statements that only PostgreSQL runs.

-- name: is_migrated
SELECT to_regclass('schema_version') IS NOT NULL;

-- name: take_turn
-- The same lock as before every row of `changes`; the number is "ghub" in ASCII.
SELECT pg_advisory_xact_lock(1734899042);

-- name: while_no_month_closes
-- Any number of bookings hold this at once, and a close waits for all of them. The number is "mnth" in ASCII.
SELECT pg_advisory_xact_lock_shared(1835955304);

-- name: while_nobody_books
SELECT pg_advisory_xact_lock(1835955304);

-- name: book
-- One round trip for a batch. Events are inserted in the order of their ids, so that two consumers with the same events
-- never deadlock.
WITH booked AS (
    INSERT INTO events (
        event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
        "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
        unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at, once, posted,
        end_user, safety_id, tags, metadata, upstream_ids, upstream_usd, mode, handed,
        route_provider, route_upstream, route_usd_per_image
    ) SELECT
        event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
        "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
        unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at, once, posted,
        end_user, safety_id, tags, metadata, upstream_ids, upstream_usd, mode, handed,
        route_provider, route_upstream, route_usd_per_image
    FROM json_populate_recordset(NULL::events, %(rows)s::json)
    ORDER BY event_id, "end"
    ON CONFLICT (event_id, ("end" = 'charge')) DO NOTHING
    RETURNING event_id, org_id, amount_micro_mxn, booked_at
), consumed AS (
    INSERT INTO credit_transactions (id, org_id, type, amount_micro_mxn, at)
    SELECT event_id, org_id, 'consumption', -amount_micro_mxn, booked_at FROM booked WHERE amount_micro_mxn > 0
)
SELECT event_id FROM booked;

-- name: add_results
INSERT INTO results (request_id, org_id, ended_us, document)
SELECT request_id, org_id, ended_us, document FROM json_populate_recordset(NULL::results, %(rows)s::json)
ORDER BY request_id ON CONFLICT DO NOTHING;

-- name: keep_balances
INSERT INTO month_balances (
    month, org_id, opening_micro_mxn, recharges_micro_mxn, bonuses_micro_mxn, refunds_micro_mxn, adjustments_micro_mxn,
    chargebacks_micro_mxn, charges_micro_mxn, orders, images, closing_micro_mxn
) SELECT
    month, org_id, opening_micro_mxn, recharges_micro_mxn, bonuses_micro_mxn, refunds_micro_mxn, adjustments_micro_mxn,
    chargebacks_micro_mxn, charges_micro_mxn, orders, images, closing_micro_mxn
FROM json_populate_recordset(NULL::month_balances, %(rows)s::json);

-- name: claim_outbox
-- What another consumer is claiming at this moment is left to it.
WITH due AS MATERIALIZED (
    SELECT sink, id, kind FROM outbox AS o WHERE sink = %(sink)s AND set_aside_at IS NULL AND next_at <= %(now)s
        AND (kind = 'charge' OR NOT EXISTS (
            SELECT 1 FROM outbox AS c
            WHERE c.sink = o.sink AND c.id = o.order_id AND c.kind = 'charge' AND c.set_aside_at IS NULL
        ))
    ORDER BY next_at LIMIT %(page)s FOR UPDATE SKIP LOCKED
)
UPDATE outbox AS o SET next_at = %(lease)s, attempts = o.attempts + 1 FROM due
WHERE (o.sink, o.id, o.kind) = (due.sink, due.id, due.kind) RETURNING o.id, o.kind, o.attempts;

-- name: delivered
-- Ids are looked up one by one. As a join, all of a sink's items are read as long as there are no statistics, because
-- an outbox is empty most of the time.
DELETE FROM outbox
WHERE sink = %(sink)s AND kind = %(kind)s
    AND id = ANY (ARRAY(SELECT json_array_elements_text(CAST(%(ids)s AS json))));

-- name: send_later
-- Only for whoever still has it: another sends it if this one took too long.
UPDATE outbox SET next_at = %(next_at)s, error = %(error)s
WHERE sink = %(sink)s AND kind = %(kind)s
    AND id = ANY (ARRAY(SELECT json_array_elements_text(CAST(%(ids)s AS json))))
    AND next_at = %(lease)s;

-- name: set_item_aside
UPDATE outbox SET set_aside_at = %(at)s, error = %(error)s
WHERE sink = %(sink)s AND kind = %(kind)s
    AND id = ANY (ARRAY(SELECT json_array_elements_text(CAST(%(ids)s AS json))))
    AND next_at = %(lease)s AND set_aside_at IS NULL;

-- name: tell_end_users
-- Not those that were erased since: the order is from before.
INSERT INTO end_users (org_id, pseudonym, value, at)
SELECT t.org_id, t.pseudonym, t.value, t.at FROM json_populate_recordset(NULL::end_users, %(rows)s::json) AS t
WHERE NOT EXISTS (
    SELECT 1 FROM audit AS a
    WHERE a.org_id = t.org_id AND a.action = 'enduser.erase' AND a.target = t.pseudonym AND a.at >= t.at
)
ORDER BY t.org_id, t.pseudonym ON CONFLICT DO NOTHING;

-- name: provider_sums
-- By the columns of `HourSum`.
SELECT
    coalesce(route_provider, provider), coalesce(route_upstream, upstream), admitted_us / 3600000000,
    ended_us / 3600000000, "end" = 'charge', quantity = images_asked, usd_measured IS NOT NULL,
    coalesce(route_usd_per_image, usd_per_image), CAST(sum(CAST(coalesce(upstream_usd, usd_measured) AS NUMERIC)) AS TEXT),
    CAST(sum(quantity) AS BIGINT), CAST(sum(images_asked) AS BIGINT)
FROM events AS e
WHERE month IN (SELECT json_array_elements_text(CAST(%(ids)s AS json))) AND ended_us >= %(first_us)s
    AND admitted_us < %(end_us)s
    AND ("end" = 'charge' OR NOT EXISTS (SELECT 1 FROM events AS c WHERE c.event_id = e.event_id AND c."end" = 'charge'))
GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, coalesce(upstream_usd, usd_measured) IS NOT NULL;

-- name: month_tags
-- Of the orders that are posted to their own month, as `month_use`: the tags that cost most, each with how many there are.
SELECT
    name, CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount) AS BIGINT), count(*) OVER ()
FROM (
    SELECT name, orders, images, amount_micro_mxn AS amount FROM usage_of
    WHERE org_id = %(org_id)s AND day BETWEEN %(first)s AND %(last)s AND kind = 'tag'
    UNION ALL
    SELECT tag, -1, -quantity, -amount_micro_mxn FROM events, json_array_elements_text(CAST(tags AS json)) AS tag
    WHERE posted > %(month)s AND org_id = %(org_id)s AND month = %(month)s AND tags IS NOT NULL AND "end" = 'charge'
) AS posts GROUP BY name HAVING sum(orders) > 0 ORDER BY 4 DESC, name COLLATE "C" LIMIT %(most)s;

-- name: add_webhook_deliveries
INSERT INTO webhook_deliveries (
    id, org_id, webhook_id, url, server, type, subject, body, at, state, since, next_at
) SELECT id, org_id, webhook_id, url, server, type, subject, body, at, state, since, next_at
FROM json_populate_recordset(NULL::webhook_deliveries, %(rows)s::json)
ORDER BY org_id, type, subject, url ON CONFLICT DO NOTHING;

-- name: claim_webhooks
-- As in SQLite. What another consumer is claiming at this moment is left to it.
WITH head AS (
    SELECT id, org_id || ' ' || server AS lane, next_at FROM webhook_deliveries
    WHERE state = 'waiting' AND next_at <= %(now)s
        AND org_id || ' ' || server NOT IN (SELECT json_array_elements_text(CAST(%(busy)s AS json)))
    ORDER BY next_at LIMIT %(head)s
), turns AS (
    SELECT id, lane, row_number() OVER (PARTITION BY lane ORDER BY next_at, id) AS turn FROM head
), chosen AS MATERIALIZED (
    SELECT id FROM turns
    WHERE turn <= CASE
        WHEN lane IN (SELECT json_array_elements_text(CAST(%(failing)s AS json))) THEN 1
        ELSE CAST(%(per_server)s AS BIGINT)
    END
    ORDER BY turn LIMIT %(page)s
), due AS MATERIALIZED (
    SELECT id FROM webhook_deliveries
    WHERE id IN (SELECT id FROM chosen) AND state = 'waiting' AND next_at <= %(now)s FOR UPDATE SKIP LOCKED
)
UPDATE webhook_deliveries AS d SET next_at = %(lease)s, attempts = d.attempts + 1 FROM due
WHERE d.id = due.id RETURNING d.id, d.org_id, d.url, d.server, d.type, d.body, d.since, d.attempts;
