-- What only SQLite is asked.

-- name: is_migrated
SELECT count(*) FROM sqlite_master WHERE name = 'schema_version';

-- name: book_event
INSERT INTO events (
    event_id, org_id, number, key_id, model, provider, upstream, size, quality, region, day, month, images_asked,
    "end", reason, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
    unit_micro_mxn, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, booked_at, once
) SELECT
    :event_id, :org_id, :number, :key_id, :model, :provider, :upstream, :size, :quality, :region, :day, :month,
    :images_asked, :end, :reason, :quantity, :variant, :usd_per_image, :price_book, :markup, :mxn_per_usd, :fx_month,
    :fx_source, :unit_micro_mxn, :usd_measured, :amount_micro_mxn, :admitted_us, :ended_us, :images, :booked_at, :once
WHERE NOT EXISTS (SELECT 1 FROM events WHERE event_id = :event_id AND ("end" = 'charge') = (:end = 'charge'))
RETURNING event_id;

-- name: book_consumption
INSERT INTO credit_transactions (id, org_id, type, number, amount_micro_mxn, at)
VALUES (:event_id, :org_id, 'consumption', NULL, -:amount_micro_mxn, :booked_at);

-- name: add_results
INSERT INTO results (request_id, org_id, ended_us, document)
SELECT value ->> 'request_id', value ->> 'org_id', value ->> 'ended_us', value ->> 'document'
FROM json_each(:results) WHERE true ON CONFLICT DO NOTHING;
