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
        end_user, safety_id, tags, metadata, upstream_ids, upstream_usd
    ) SELECT
        event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
        "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
        unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at, once, posted,
        end_user, safety_id, tags, metadata, upstream_ids, upstream_usd
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

-- name: tell_end_users
-- Not those that were erased since: the order is from before.
INSERT INTO end_users (org_id, pseudonym, value, at)
SELECT t.org_id, t.pseudonym, t.value, t.at FROM json_populate_recordset(NULL::end_users, %(rows)s::json) AS t
WHERE NOT EXISTS (
    SELECT 1 FROM audit AS a
    WHERE a.org_id = t.org_id AND a.action = 'enduser.erase' AND a.target = t.pseudonym AND a.at >= t.at
)
ORDER BY t.org_id, t.pseudonym ON CONFLICT DO NOTHING;
