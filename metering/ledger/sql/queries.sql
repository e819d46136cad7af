-- Every statement that the ledger runs, by name.

-- name: create_org
INSERT INTO organizations (id, name, plan, requests_per_minute, images_per_minute, created_at)
VALUES (:org_id, :name, :plan, :requests_per_minute, :images_per_minute, :created_at);

-- name: org
SELECT id, name, plan, requests_per_minute, images_per_minute, created_at
FROM organizations WHERE id = :ref OR name = :ref;

-- name: orgs
SELECT id, name, plan, requests_per_minute, images_per_minute, created_at FROM organizations ORDER BY created_at, id;

-- name: set_limits
UPDATE organizations SET
    requests_per_minute = coalesce(:requests_per_minute, requests_per_minute),
    images_per_minute = coalesce(:images_per_minute, images_per_minute)
WHERE id = :org_id;

-- name: create_key
INSERT INTO api_keys (id, org_id, name, hash, created_at) VALUES (:key_id, :org_id, :name, :key_hash, :created_at);

-- name: keys
SELECT id, org_id, name, hash, created_at, revoked_at FROM api_keys WHERE org_id = :org_id ORDER BY created_at, id;

-- name: key
SELECT id, org_id, name, hash, created_at, revoked_at FROM api_keys WHERE id = :key_id;

-- name: revoke_key
UPDATE api_keys SET revoked_at = :at WHERE id = :key_id AND revoked_at IS NULL;

-- name: change
INSERT INTO changes (org_id, what, at) VALUES (:org_id, :what, :at);

-- name: last_change
SELECT coalesce(max(seq), 0) FROM changes;

-- name: changed_since
SELECT DISTINCT org_id FROM changes WHERE seq > :change;

-- name: revision
SELECT coalesce(max(seq), 0) FROM changes WHERE org_id = :org_id;

-- name: credit
SELECT org_id, type, amount_micro_mxn FROM credit_transactions WHERE id = :id AND type <> 'consumption';

-- name: last_credit
SELECT coalesce(max(number), 0), coalesce(sum(amount_micro_mxn), 0)
FROM credit_transactions WHERE org_id = :org_id AND type <> 'consumption';

-- name: add_credit
INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at)
VALUES (:id, :org_id, :type, :number, :amount_micro_mxn, :at);

-- name: book_event
INSERT INTO events (
    event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
    "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
    unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at
) VALUES (
    :event_id, :org_id, :number, :key_id, :model, :provider, :upstream, :size, :quality, :region, :day, :month,
    :images_asked, :end, :reason, :quantity, :variant, :usd_per_image, :price_book, :markup, :mxn_per_usd, :fx_month,
    :fx_source, :unit_micro_mxn, :usd_measured, :amount_micro_mxn, :admitted_us, :ended_us, :images, :booked_at
) ON CONFLICT (event_id) DO NOTHING;

-- name: book_consumption
INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at)
VALUES (:event_id, :org_id, 'consumption', NULL, -:amount_micro_mxn, :booked_at);

-- name: set_aside
INSERT INTO events_set_aside (partition, entry_id, error, fields, at)
VALUES (:partition, :entry_id, :error, :fields, :at) ON CONFLICT DO NOTHING;

-- name: count_set_aside
SELECT count(*) FROM events_set_aside;

-- name: charged_up_to
SELECT count(*), coalesce(max(number), 0), coalesce(sum(amount_micro_mxn), 0)
FROM events WHERE org_id = :org_id AND number <= :number;

-- name: events
SELECT
    number, event_id, org_id, key_id, model, provider, upstream, size, quality, images_asked, day, month, region,
    variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source, unit_micro_mxn, "end", reason,
    quantity, usd_measured, amount_micro_mxn, admitted_us, ended_us, images
FROM events
WHERE (:org_id IS NULL OR org_id = :org_id) AND (:month IS NULL OR month = :month)
    AND (month, org_id, number, event_id) > (:after_month, :after_org_id, :after_number, :after_event_id)
ORDER BY month, org_id, number, event_id LIMIT :page;

-- name: rates
SELECT month, mxn_per_usd, source FROM fx_rates
WHERE id IN (SELECT max(id) FROM fx_rates GROUP BY month) ORDER BY month;

-- name: all_rates
SELECT month, mxn_per_usd FROM fx_rates;

-- name: add_rate
INSERT INTO fx_rates (month, mxn_per_usd, source, at) VALUES (:month, :mxn_per_usd, :source, :at);

-- name: add_price_book
INSERT INTO price_books (version, markup, at) VALUES (:version, :markup, :at) ON CONFLICT DO NOTHING;

-- name: add_price
INSERT INTO prices (version, model, variant, usd_per_image) VALUES (:version, :model, :variant, :usd_per_image);

-- name: price_rows
SELECT p.version, p.model, p.variant, p.usd_per_image, b.markup FROM prices p JOIN price_books b ON b.version = p.version;
