-- The statements that both databases run, by name.

-- name: schema_version
SELECT coalesce(max(version), 0) FROM schema_version;

-- name: create_org
INSERT INTO organizations (id, name, plan, created_at) VALUES (:org_id, :name, :plan, :created_at);

-- name: org
SELECT id, name, plan, created_at, suspended_at, {limit} FROM organizations WHERE id = :ref OR name = :ref;

-- name: orgs
SELECT id, name, plan, created_at, suspended_at, {limit} FROM organizations
WHERE (created_at, id) > (:after_at, :after_id) ORDER BY created_at, id LIMIT :page;

-- name: orgs_of
SELECT id, name, plan, created_at, suspended_at, {limit} FROM organizations WHERE id IN (:ids) ORDER BY created_at, id;

-- name: set_org
UPDATE organizations SET name = :name, plan = :plan, suspended_at = :suspended_at WHERE id = :org_id;

-- name: set_limits
UPDATE organizations SET {limit = :limit} WHERE id = :org_id;

-- name: plans
SELECT name, {limit} FROM plans ORDER BY name;

-- name: set_plan
INSERT INTO plans (name, {limit}, at) VALUES (:name, {:limit}, :at)
ON CONFLICT (name) DO UPDATE SET {limit = excluded.limit}, at = excluded.at;

-- name: drop_plan
DELETE FROM plans WHERE name = :name;

-- name: change_all
-- All organisations change, because one whose plan no longer exists has the default plan's limits.
INSERT INTO changes (org_id, what, at) SELECT id, :what, :at FROM organizations ORDER BY id;

-- name: create_key
INSERT INTO api_keys (
    id, org_id, name, hash, created_at, expires_at, models, read, response_format, origins, replaces, {limit}
) VALUES (
    :key_id, :org_id, :name, :key_hash, :created_at, :expires_at, :models, :read, :response_format, :origins, :replaces,
    {:limit}
);

-- name: keys
SELECT
    id, org_id, name, hash, created_at, revoked_at, expires_at, models, read, response_format, origins, replaces, {limit}
FROM api_keys WHERE org_id = :org_id AND (created_at, id) > (:after_at, :after_id) ORDER BY created_at, id LIMIT :page;

-- name: keys_of
SELECT
    id, org_id, name, hash, created_at, revoked_at, expires_at, models, read, response_format, origins, replaces, {limit}
FROM api_keys WHERE org_id IN (:ids) ORDER BY created_at, id;

-- name: origins
SELECT DISTINCT origins FROM api_keys
WHERE origins <> '' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :at);

-- name: key
SELECT
    id, org_id, name, hash, created_at, revoked_at, expires_at, models, read, response_format, origins, replaces, {limit}
FROM api_keys WHERE id = :key_id;

-- name: known_orgs
SELECT id FROM organizations WHERE id IN (:ids);

-- name: known_keys
SELECT id FROM api_keys WHERE id IN (:ids);

-- name: known_hashes
SELECT hash FROM api_keys WHERE hash IN (:ids);

-- name: issued
SELECT details FROM audit WHERE org_id = :org_id AND target = :key_id AND action IN ('key.create', 'key.rotate');

-- name: revoke_key
UPDATE api_keys SET revoked_at = :at WHERE id = :key_id AND revoked_at IS NULL RETURNING id;

-- name: expire_key
UPDATE api_keys SET expires_at = :at
WHERE id = :key_id AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > :at) RETURNING id;

-- name: set_key_limits
UPDATE api_keys SET {limit = :limit} WHERE id = :key_id;

-- name: audit
INSERT INTO audit (at, actor, action, org_id, target, details) VALUES (:at, :actor, :action, :org_id, :target, :details);

-- name: audits
SELECT id, at, actor, action, org_id, target, details FROM audit
WHERE (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id) AND (CAST(:actor AS TEXT) IS NULL OR actor = :actor)
    AND (CAST(:action AS TEXT) IS NULL OR action = :action) AND id < :before
ORDER BY id DESC LIMIT :page;

-- name: written
SELECT fingerprint, target FROM writes WHERE actor = :actor AND key = :key;

-- name: add_write
INSERT INTO writes (actor, key, fingerprint, target, at) VALUES (:actor, :key, :fingerprint, :target, :at);

-- name: last_used
SELECT key_id, max(last_us) FROM usage WHERE org_id = :org_id GROUP BY key_id;

-- name: usage
-- Sums over the dimensions that were not requested, which are empty then: a year of many keys is many rows.
SELECT
    CASE WHEN :by_day THEN day ELSE '' END, CASE WHEN :by_model THEN model ELSE '' END,
    CASE WHEN :by_key THEN key_id ELSE '' END,
    CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM usage
WHERE org_id = :org_id AND day BETWEEN :first AND :last AND (CAST(:ids AS TEXT) IS NULL OR key_id IN (:ids))
GROUP BY 1, 2, 3 LIMIT :most;

-- name: usage_by
-- As above, by what orders carry. The rest, which carry none, is what the sums of the same group lack.
WITH named AS (
    SELECT
        CASE WHEN :by_day THEN day ELSE '' END AS day, CASE WHEN :by_model THEN model ELSE '' END AS model,
        CASE WHEN :by_key THEN key_id ELSE '' END AS key_id,
        substr(name, length(CAST(:prefix AS TEXT)) + 1) AS name,
        CAST(sum(orders) AS BIGINT) AS orders, CAST(sum(images) AS BIGINT) AS images,
        CAST(sum(amount_micro_mxn) AS BIGINT) AS amount_micro_mxn
    FROM usage_of
    WHERE org_id = :org_id AND day BETWEEN :first AND :last AND (CAST(:ids AS TEXT) IS NULL OR key_id IN (:ids))
        AND kind = :kind AND substr(name, 1, length(CAST(:prefix AS TEXT))) = :prefix
    GROUP BY 1, 2, 3, 4
), total AS (
    SELECT
        CASE WHEN :by_day THEN day ELSE '' END AS day, CASE WHEN :by_model THEN model ELSE '' END AS model,
        CASE WHEN :by_key THEN key_id ELSE '' END AS key_id,
        CAST(sum(orders) AS BIGINT) AS orders, CAST(sum(images) AS BIGINT) AS images,
        CAST(sum(amount_micro_mxn) AS BIGINT) AS amount_micro_mxn
    FROM usage
    WHERE org_id = :org_id AND day BETWEEN :first AND :last AND (CAST(:ids AS TEXT) IS NULL OR key_id IN (:ids))
    GROUP BY 1, 2, 3
)
SELECT n.day, n.model, n.key_id, n.orders, n.images, n.amount_micro_mxn, coalesce(e.value, n.name)
FROM named AS n LEFT JOIN end_users AS e
    ON e.org_id = :org_id AND e.pseudonym = n.name AND CAST(:kind AS TEXT) IN ('user', 'safety_identifier')
WHERE n.name <> ''
UNION ALL
SELECT
    t.day, t.model, t.key_id, t.orders - CAST(coalesce(sum(n.orders), 0) AS BIGINT),
    t.images - CAST(coalesce(sum(n.images), 0) AS BIGINT),
    t.amount_micro_mxn - CAST(coalesce(sum(n.amount_micro_mxn), 0) AS BIGINT), ''
FROM total AS t LEFT JOIN named AS n
    ON n.day = t.day AND n.model = t.model AND n.key_id = t.key_id AND n.name <> ''
WHERE CAST(:kind AS TEXT) <> 'tag'
GROUP BY t.day, t.model, t.key_id, t.orders, t.images, t.amount_micro_mxn
HAVING t.orders > coalesce(sum(n.orders), 0)
LIMIT :most;

-- name: pseudonym_secret
SELECT secret FROM pseudonym_keys;

-- name: end_user
SELECT value, at FROM end_users WHERE org_id = :org_id AND pseudonym = :pseudonym;

-- name: used_by
-- By the columns of `LabelUse`.
SELECT
    kind, CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT), min(day),
    max(day)
FROM usage_of
WHERE org_id = :org_id AND kind IN ('user', 'safety_identifier') AND name = :pseudonym
GROUP BY kind ORDER BY kind;

-- name: erase_end_user
DELETE FROM end_users WHERE org_id = :org_id AND pseudonym = :pseudonym RETURNING pseudonym;

-- name: usage_of_orgs
SELECT
    CASE WHEN :by_org THEN org_id ELSE '' END, CASE WHEN :by_day THEN day ELSE '' END,
    CASE WHEN :by_model THEN model ELSE '' END, CASE WHEN :by_key THEN key_id ELSE '' END,
    CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM usage WHERE day BETWEEN :first AND :last AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT :most;

-- name: used
-- For each organisation and key: images of a day, and images and money of its month.
SELECT
    org_id, key_id, CAST(coalesce(sum(CASE WHEN day = :day THEN images END), 0) AS BIGINT),
    CAST(sum(images) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM usage WHERE org_id IN (:ids) AND day BETWEEN :first AND :last GROUP BY org_id, key_id;

-- name: add_notice
INSERT INTO notices (org_id, key_id, what, percent, period, limited_to, used, at)
VALUES (:org_id, :key_id, :what, :percent, :period, :limit, :used, :at) ON CONFLICT DO NOTHING RETURNING what;

-- name: notices
SELECT org_id, key_id, what, percent, period, limited_to, used, at FROM notices
WHERE (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
    AND (CAST(:kind AS TEXT) IS NULL OR what = :kind)
    AND (at, what, percent, key_id, period, org_id) < (:before, :what, :percent, :key_id, :period, :last_org_id)
ORDER BY at DESC, what DESC, percent DESC, key_id DESC, period DESC, org_id DESC LIMIT :page;

-- name: change
INSERT INTO changes (org_id, what, at) VALUES (:org_id, :what, :at);

-- name: change_for_a_rebuild
-- Uses any organisation, because none has changed: only the row's own time matters, which no other ledger has.
INSERT INTO changes (org_id, what, at) SELECT id, 'rebuild', :at FROM organizations ORDER BY id LIMIT 1;

-- name: last_change
SELECT coalesce(max(seq), 0) FROM changes;

-- name: change_at
SELECT org_id, what, at FROM changes WHERE seq = :seq;

-- name: changed_since
SELECT DISTINCT org_id FROM changes WHERE seq > :change;

-- name: revisions
SELECT org_id, max(seq) FROM changes WHERE org_id IN (:ids) GROUP BY org_id;

-- name: credit
SELECT org_id, type, amount_micro_mxn, recharge_id, corrects FROM credit_transactions
WHERE id = :id AND type <> 'consumption';

-- name: last_credit
-- Selects by number, not by type: the index finds the credits, and consumption, a thousand times as much, is not read.
SELECT coalesce(max(number), 0), CAST(coalesce(sum(amount_micro_mxn), 0) AS BIGINT)
FROM credit_transactions WHERE org_id = :org_id AND number IS NOT NULL;

-- name: credits_of
SELECT org_id, max(number), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM credit_transactions WHERE org_id IN (:ids) AND number IS NOT NULL GROUP BY org_id;

-- name: add_credit
INSERT INTO credit_transactions (
    id, org_id, type, number, amount_micro_mxn, at, order_id, reason, actor, recharge_id, base_micro_mxn, iva_rate,
    iva_micro_mxn, balance_micro_mxn, corrects
) VALUES (
    :id, :org_id, :type, :number, :amount_micro_mxn, :at, :order_id, :reason, :actor, :recharge_id, :base_micro_mxn,
    :iva_rate, :iva_micro_mxn, :balance_micro_mxn, :corrects
);

-- name: credit_row
-- By the columns of `Credit`.
SELECT
    id, org_id, type, amount_micro_mxn, reason, order_id, recharge_id, base_micro_mxn, iva_rate, iva_micro_mxn, number,
    at, actor, balance_micro_mxn, corrects
FROM credit_transactions WHERE id = :id AND type <> 'consumption';

-- name: credits
SELECT
    id, org_id, type, amount_micro_mxn, reason, order_id, recharge_id, base_micro_mxn, iva_rate, iva_micro_mxn, number,
    at, actor, balance_micro_mxn, corrects
FROM credit_transactions
WHERE number IS NOT NULL AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
    AND (CAST(:type AS TEXT) IS NULL OR type = :type)
    AND at >= :first_at AND at < :end_at AND (at, org_id, number) < (:before_at, :before_org_id, :before_number)
ORDER BY at DESC, org_id DESC, number DESC LIMIT :page;

-- name: month_credits
-- As `credits`, but oldest first.
SELECT
    id, org_id, type, amount_micro_mxn, reason, order_id, recharge_id, base_micro_mxn, iva_rate, iva_micro_mxn, number,
    at, actor, balance_micro_mxn, corrects
FROM credit_transactions
WHERE number IS NOT NULL AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
    AND at >= :first_at AND at < :end_at AND (at, org_id, number) > (:after_at, :after_org_id, :after_number)
ORDER BY at, org_id, number LIMIT :page;

-- name: charged_back
SELECT CAST(coalesce(sum(amount_micro_mxn), 0) AS BIGINT) FROM credit_transactions WHERE recharge_id = :id;

-- name: add_credit_fact
INSERT INTO credit_facts (credit_id, name, value, at) VALUES (:credit_id, :name, :value, :at);

-- name: credit_facts
SELECT credit_id, name, value FROM credit_facts
WHERE credit_id IN (:ids) AND id IN (
    SELECT max(id) FROM credit_facts WHERE credit_id IN (:ids) AND at <= :until GROUP BY credit_id, name
)
ORDER BY credit_id, name;

-- name: balances_at
-- Credits until a moment, and charges until the end of the day before it, of each organisation. What came after the close
-- of its month counts from the first day of the month to which it is posted.
SELECT
    o.id, o.name, CAST(coalesce(c.credits, 0) AS BIGINT),
    CAST(coalesce(u.charges, 0) - coalesce(late.charges, 0) AS BIGINT)
FROM organizations AS o
LEFT JOIN (
    SELECT org_id, sum(amount_micro_mxn) AS credits FROM credit_transactions
    WHERE number IS NOT NULL AND at < :end_at GROUP BY org_id
) AS c ON c.org_id = o.id
LEFT JOIN (
    SELECT org_id, sum(amount_micro_mxn) AS charges FROM usage WHERE day <= :day GROUP BY org_id
) AS u ON u.org_id = o.id
LEFT JOIN (
    SELECT CAST(org_id AS TEXT) AS org_id, sum(amount_micro_mxn) AS charges FROM events
    WHERE posted > substr(CAST(:day AS TEXT), 1, 7) AND CAST(day AS TEXT) <= :day GROUP BY 1
) AS late ON late.org_id = o.id
WHERE o.id > :after_id AND o.created_at < :end_at ORDER BY o.id LIMIT :page;

-- name: refunds_of_order
SELECT id, org_id, order_id, amount_micro_mxn, reason, at FROM credit_transactions
WHERE order_id = :order_id ORDER BY number;

-- name: refunds
-- Refunds of a span of time, each with the charge that it gives back.
SELECT
    c.id, c.org_id, c.order_id, c.amount_micro_mxn, c.reason, c.at,
    e.event_id, e.org_id, e.number, e.key_id, e.day, e.month, e.admitted_us, e.ended_us, e.model,
    coalesce(e.route_provider, e.provider), coalesce(e.route_upstream, e.upstream), e.size, e.quality, e.region, e.images_asked, e.quantity, e.variant, e.usd_per_image, e.price_book,
    e.markup, e.mxn_per_usd, e.fx_month, e.fx_source, e.unit_micro_mxn, e.usd_measured, e.amount_micro_mxn, e.images,
    e.posted, e.end_user, e.safety_id, e.tags, e.metadata, e.upstream_ids, e.upstream_usd, e."end", e.reason
FROM credit_transactions AS c JOIN events AS e ON e.event_id = c.order_id AND e."end" = 'charge'
WHERE c.order_id IS NOT NULL AND c.at >= :first_at AND c.at < :end_at
    AND (CAST(:org_id AS TEXT) IS NULL OR c.org_id = :org_id) AND (c.at, c.id) > (:after_at, :after_id)
ORDER BY c.at, c.id LIMIT :page;

-- name: order_ends
SELECT
    number, event_id, org_id, key_id, model, provider, upstream, size, quality, images_asked, day, month, region,
    variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source, unit_micro_mxn, "end", reason,
    quantity, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, once, end_user,
    safety_id, tags, metadata, upstream_ids, upstream_usd, mode, handed, route_provider, route_upstream,
    route_usd_per_image, booked_at
FROM events WHERE event_id = :order_id ORDER BY number;

-- name: result_kept
SELECT count(*) FROM results WHERE request_id = :order_id;

-- name: set_aside_of_order
SELECT s.partition, s.entry_id, s.org_id, s.error, s.at, e.at
FROM events_set_aside AS s LEFT JOIN set_aside_ends AS e ON e.partition = s.partition AND e.entry_id = s.entry_id
WHERE s.request_id = :order_id ORDER BY s.at, s.entry_id;

-- name: set_aside
INSERT INTO events_set_aside (partition, entry_id, error, fields, request_id, org_id, at)
VALUES (:partition, :entry_id, :error, :fields, :order_id, :org_id, :at) ON CONFLICT DO NOTHING;

-- name: count_set_aside
SELECT count(*) FROM events_set_aside AS a
WHERE NOT EXISTS (SELECT 1 FROM set_aside_ends AS e WHERE (e.partition, e.entry_id) = (a.partition, a.entry_id));

-- name: set_asides
SELECT a.partition, a.entry_id, a.error, a.fields, a.request_id, a.org_id, a.at, NULL FROM events_set_aside AS a
WHERE NOT EXISTS (SELECT 1 FROM set_aside_ends AS e WHERE (e.partition, e.entry_id) = (a.partition, a.entry_id))
    AND (a.at, a.partition, a.entry_id) > (:after_at, :after_partition, :after_entry_id)
ORDER BY a.at, a.partition, a.entry_id LIMIT :page;

-- name: set_aside_row
SELECT a.partition, a.entry_id, a.error, a.fields, a.request_id, a.org_id, a.at, e.at FROM events_set_aside AS a
LEFT JOIN set_aside_ends AS e ON (e.partition, e.entry_id) = (a.partition, a.entry_id)
WHERE a.partition = :partition AND a.entry_id = :entry_id;

-- name: set_aside_of
-- Includes rows without a request id, written by a version that did not extract it: they must be read.
SELECT a.request_id, a.fields FROM events_set_aside AS a
WHERE (a.request_id IN (:ids) OR a.request_id IS NULL)
    AND NOT EXISTS (SELECT 1 FROM set_aside_ends AS e WHERE (e.partition, e.entry_id) = (a.partition, a.entry_id));

-- name: end_set_aside
INSERT INTO set_aside_ends (partition, entry_id, at) VALUES (:partition, :entry_id, :at)
ON CONFLICT DO NOTHING RETURNING entry_id;

-- name: charged_up_to
-- Subtracts from the running total what came after the given number. A wallet's cut is never far behind, so few rows
-- are read.
SELECT
    total.events - count(later.number),
    (SELECT coalesce(max(number), 0) FROM events WHERE org_id = :org_id AND number <= :number),
    total.amount_micro_mxn - CAST(coalesce(sum(later.amount_micro_mxn), 0) AS BIGINT)
FROM charged AS total LEFT JOIN events AS later ON later.org_id = total.org_id AND later.number > :number
WHERE total.org_id = :org_id
GROUP BY total.events, total.amount_micro_mxn;

-- name: recount
SELECT count(*), coalesce(max(number), 0), CAST(coalesce(sum(amount_micro_mxn), 0) AS BIGINT)
FROM events WHERE org_id = :org_id AND number <= :number;

-- name: missing_numbers
SELECT number + 1, following - 1 FROM (
    SELECT number, lead(number, 1, CAST(:number AS BIGINT) + 1) OVER (ORDER BY number) AS following FROM (
        SELECT CAST(0 AS BIGINT) AS number UNION SELECT number FROM events WHERE org_id = :org_id AND number <= :number
    ) AS numbers
) AS gaps WHERE following > number + 1 ORDER BY number LIMIT :most;

-- name: refunded_above
SELECT org_id, order_id, refunded, charged FROM (
    SELECT
        c.org_id, c.order_id, CAST(sum(c.amount_micro_mxn) AS BIGINT) AS refunded,
        CAST(coalesce((
            SELECT sum(e.amount_micro_mxn) FROM events AS e
            WHERE e.event_id = c.order_id AND e.org_id = c.org_id AND e."end" = 'charge'
        ), 0) AS BIGINT) AS charged
    FROM credit_transactions AS c WHERE c.order_id IS NOT NULL GROUP BY c.org_id, c.order_id
) AS refunds WHERE refunded > charged ORDER BY org_id, order_id;

-- name: events
SELECT
    number, event_id, org_id, key_id, model, provider, upstream, size, quality, images_asked, day, month, region,
    variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source, unit_micro_mxn, "end", reason,
    quantity, usd_measured, amount_micro_mxn, admitted_us, ended_us, images, once, end_user,
    safety_id, tags, metadata, upstream_ids, upstream_usd, mode, handed, route_provider, route_upstream,
    route_usd_per_image
FROM events
WHERE (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id) AND ended_us >= :since_us
    AND (month, org_id, number, event_id) > (:after_month, :after_org_id, :after_number, :after_event_id)
ORDER BY month, org_id, number, event_id LIMIT :page;

-- name: charges
-- By the columns of `Charge`: orders that were charged, or all others.
SELECT
    event_id, org_id, number, key_id, day, month, admitted_us, ended_us, model, coalesce(route_provider, provider),
    coalesce(route_upstream, upstream), size, quality,
    region, images_asked, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
    unit_micro_mxn, usd_measured, amount_micro_mxn, images, posted, end_user, safety_id, tags, metadata, upstream_ids,
    upstream_usd, "end", reason
FROM events
WHERE ("end" = 'charge') = CAST(:charged AS BOOLEAN) AND month = :month AND posted IS NULL
    AND day BETWEEN :first AND :last AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
    AND (org_id, number, event_id) > (:after_org_id, :after_number, :after_event_id)
ORDER BY org_id, number, event_id LIMIT :page;

-- name: late_charges
-- What a later month was charged for orders of closed ones, by the columns of `Charge`; or their other ends.
SELECT
    event_id, org_id, number, key_id, day, month, admitted_us, ended_us, model, coalesce(route_provider, provider),
    coalesce(route_upstream, upstream), size, quality,
    region, images_asked, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, fx_source,
    unit_micro_mxn, usd_measured, amount_micro_mxn, images, posted, end_user, safety_id, tags, metadata, upstream_ids,
    upstream_usd, "end", reason
FROM events
WHERE ("end" = 'charge') = CAST(:charged AS BOOLEAN) AND posted = :month AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
    AND (org_id, number, event_id) > (:after_org_id, :after_number, :after_event_id)
ORDER BY org_id, number, event_id LIMIT :page;

-- name: result
SELECT r.request_id, e.images, r.document, e.key_id FROM results AS r
JOIN events AS e ON e.event_id = r.request_id AND e."end" = 'charge'
WHERE r.org_id = :org_id AND r.request_id = :order_id;

-- name: results
SELECT r.request_id, e.images, r.document, e.key_id, r.ended_us FROM results AS r
JOIN events AS e ON e.event_id = r.request_id AND e."end" = 'charge'
WHERE r.org_id = :org_id AND r.ended_us <= :until_us AND (r.ended_us < :until_us OR r.request_id > :after_id)
ORDER BY r.ended_us DESC, r.request_id LIMIT :page;

-- name: results_of_key
SELECT r.request_id, e.images, r.document, e.key_id, r.ended_us FROM events AS e
JOIN results AS r ON r.request_id = e.event_id
WHERE e.org_id = :org_id AND e.key_id = :key_id AND e."end" = 'charge'
AND e.ended_us <= :until_us AND (e.ended_us < :until_us OR e.event_id > :after_id)
ORDER BY e.ended_us DESC, e.event_id LIMIT :page;

-- name: charged_since
SELECT r.org_id, r.request_id, e.amount_micro_mxn FROM results AS r
JOIN events AS e ON e.event_id = r.request_id AND e."end" = 'charge'
WHERE r.org_id IN (:ids) AND r.ended_us > :since_us;

-- name: keyed
SELECT org_id, event_id, once, amount_micro_mxn, ended_us FROM events
WHERE org_id IN (:ids) AND once IS NOT NULL AND ended_us > :since_us AND "end" = 'charge' ORDER BY ended_us;

-- name: charged
SELECT
    org_id, events, (SELECT coalesce(max(number), 0) FROM events AS e WHERE e.org_id = total.org_id), amount_micro_mxn
FROM charged AS total WHERE org_id IN (:ids);

-- name: open_incarnation
INSERT INTO incarnations (id, at, host) VALUES (:id, :at, :host);

-- name: close_incarnation
INSERT INTO incarnation_ends (id, last_number, at)
SELECT CAST(:id AS TEXT), CAST(:last_number AS BIGINT), CAST(:at AS TEXT)
WHERE NOT EXISTS (SELECT 1 FROM incarnation_ends WHERE id = :id);

-- name: incarnation
SELECT opened.at, ended.at, ended.last_number, ended.lost_reason, opened.host
FROM (SELECT CAST(:id AS TEXT) AS id) AS asked
LEFT JOIN incarnations AS opened ON opened.id = asked.id
LEFT JOIN incarnation_ends AS ended ON ended.id = asked.id;

-- name: lose_incarnation
INSERT INTO incarnation_ends (id, last_number, at, lost_reason) VALUES (:id, 0, :at, :reason);

-- name: open_incarnations
SELECT id FROM incarnations WHERE id NOT IN (SELECT id FROM incarnation_ends) ORDER BY at, id;

-- name: rates
-- The last that was approved of each month.
SELECT month, mxn_per_usd, source FROM fx_rates
WHERE id IN (SELECT max(r.id) FROM fx_rates AS r JOIN fx_approvals AS a ON a.rate_id = r.id GROUP BY r.month)
ORDER BY month;

-- name: all_rates
SELECT month, mxn_per_usd FROM fx_rates WHERE id IN (SELECT rate_id FROM fx_approvals);

-- name: rate_records
-- By the columns of `FxRecord`.
SELECT
    r.id, r.month, r.mxn_per_usd, r.source, r.series, r.method, r.printed, r.fetched_at, r.raw_sha256, r.entered_by, r.at,
    a.approved_by, a.at
FROM fx_rates AS r LEFT JOIN fx_approvals AS a ON a.rate_id = r.id ORDER BY r.month, r.id;

-- name: add_rate
INSERT INTO fx_rates (month, mxn_per_usd, source, series, method, printed, fetched_at, raw_sha256, entered_by, at)
VALUES (:month, :mxn_per_usd, :source, :series, :method, :printed, :fetched_at, :raw_sha256, :entered_by, :at)
RETURNING id;

-- name: approve_rate
INSERT INTO fx_approvals (rate_id, approved_by, at) VALUES (:rate_id, :approved_by, :at);

-- name: priced_at_rate
-- What an organisation was charged at a month's rate, by list price and markup. The month after is charged at it, too,
-- while it has none of its own. Orders that their provider measured are read one by one, by the next statement.
SELECT usd_per_image, markup, CAST(sum(quantity) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT) FROM events
WHERE org_id = :org_id AND month IN (:month, :following) AND fx_month = :month AND "end" = 'charge'
    AND usd_measured IS NULL
GROUP BY usd_per_image, markup;

-- name: measured_at_rate
SELECT number, event_id, usd_per_image, markup, quantity, usd_measured, amount_micro_mxn FROM events
WHERE org_id = :org_id AND month = :of_month AND fx_month = :month AND "end" = 'charge' AND usd_measured IS NOT NULL
    AND (number, event_id) > (:after_number, :after_event_id)
ORDER BY number, event_id LIMIT :page;

-- name: refunded_at_rate
-- Each order once, with all that was refunded of it: at the first of its refunds.
SELECT
    c.number, e.usd_per_image, e.markup, e.quantity, e.usd_measured, e.amount_micro_mxn,
    CAST((SELECT sum(r.amount_micro_mxn) FROM credit_transactions AS r WHERE r.order_id = c.order_id) AS BIGINT)
FROM credit_transactions AS c JOIN events AS e ON e.event_id = c.order_id AND e."end" = 'charge'
WHERE c.org_id = :org_id AND c.number > :after_number AND c.type = 'refund' AND e.fx_month = :month
    AND c.number = (SELECT min(r.number) FROM credit_transactions AS r WHERE r.order_id = c.order_id)
ORDER BY c.number LIMIT :page;

-- name: corrected
-- How often something was corrected, and by how much in all.
SELECT count(*), CAST(coalesce(sum(amount_micro_mxn), 0) AS BIGINT)
FROM credit_transactions WHERE org_id = :org_id AND corrects = :corrects;

-- name: propose_adjustment
INSERT INTO adjustments_proposed (org_id, amount_micro_mxn, reason, corrects, proposed_by, at)
VALUES (:org_id, :amount_micro_mxn, :reason, :corrects, :proposed_by, :at) RETURNING id;

-- name: approve_adjustment
INSERT INTO adjustment_approvals (proposal_id, credit_id, approved_by, at)
VALUES (:proposal_id, :credit_id, :approved_by, :at);

-- name: adjustments
-- By the columns of `Adjustment`, latest first.
SELECT
    p.id, p.org_id, p.amount_micro_mxn, p.reason, p.corrects, p.proposed_by, p.at, a.credit_id, a.approved_by, a.at
FROM adjustments_proposed AS p LEFT JOIN adjustment_approvals AS a ON a.proposal_id = p.id
WHERE p.id < :before ORDER BY p.id DESC LIMIT :page;

-- name: adjustment
SELECT
    p.id, p.org_id, p.amount_micro_mxn, p.reason, p.corrects, p.proposed_by, p.at, a.credit_id, a.approved_by, a.at
FROM adjustments_proposed AS p LEFT JOIN adjustment_approvals AS a ON a.proposal_id = p.id
WHERE p.id = :proposal_id;

-- name: month_right
SELECT month_right FROM month_rights WHERE month = :month AND actor = :actor;

-- name: use_month_right
INSERT INTO month_rights (month, actor, month_right, at) VALUES (:month, :actor, :month_right, :at);

-- name: price_book
SELECT version FROM price_books WHERE version = :version;

-- name: add_price_book
INSERT INTO price_books (version, markup, at) VALUES (:version, :markup, :at);

-- name: add_price
INSERT INTO prices (version, model, variant, usd_per_image, measured_by)
VALUES (:version, :model, :variant, :usd_per_image, :measured_by);

-- name: price_rows
SELECT p.version, p.model, p.variant, p.usd_per_image, b.markup FROM prices p JOIN price_books b ON b.version = p.version;

-- name: last_price_list
SELECT number, at_us FROM price_lists ORDER BY number DESC LIMIT 1;

-- name: price_list
SELECT number FROM price_lists WHERE version = :version AND effective_us = :effective_us LIMIT 1;

-- name: add_price_list
INSERT INTO price_lists (version, effective_us, at_us, at) VALUES (:version, :effective_us, :at_us, :at) RETURNING number;

-- name: add_price_schedule
INSERT INTO price_schedules (number, model, variant, version, from_us, version_before)
VALUES (:number, :model, :variant, :version, :from_us, :version_before);

-- name: price_schedules
-- Oldest list first.
SELECT
    s.model, s.variant, s.number, l.at_us, s.from_us, s.version, p.usd_per_image, b.markup, p.measured_by,
    s.version_before, q.usd_per_image, c.markup, q.measured_by
FROM price_schedules AS s
JOIN price_lists AS l ON l.number = s.number
JOIN prices AS p ON p.version = s.version AND p.model = s.model AND p.variant = s.variant
JOIN price_books AS b ON b.version = s.version
LEFT JOIN prices AS q ON q.version = s.version_before AND q.model = s.model AND q.variant = s.variant
LEFT JOIN price_books AS c ON c.version = s.version_before
ORDER BY s.number;

-- name: closed_months
-- By the columns of `ClosedMonth`. Manifests are large, and are read one at a time.
SELECT
    c.month, c.ends_at, c.closed_at, c.closed_by, EXISTS (SELECT 1 FROM month_manifests AS m WHERE m.month = c.month),
    CAST((SELECT coalesce(sum(charges_micro_mxn), 0) FROM month_balances AS b WHERE b.month = c.month) AS BIGINT),
    CAST((SELECT coalesce(sum(closing_micro_mxn), 0) FROM month_balances AS b WHERE b.month = c.month) AS BIGINT)
FROM months AS c ORDER BY c.month;

-- name: month_state
SELECT c.month, EXISTS (SELECT 1 FROM month_manifests AS m WHERE m.month = c.month) FROM months AS c WHERE c.month = :month;

-- name: manifest
SELECT manifest FROM month_manifests WHERE month = :month;

-- name: first_data
-- The first month of any charge, and the moment of the first credit.
SELECT (SELECT min(month) FROM events), (SELECT min(at) FROM credit_transactions WHERE number IS NOT NULL);

-- name: close_month
INSERT INTO months (month, ends_at, closed_at, closed_by) VALUES (:month, :ends_at, :at, :closed_by);

-- name: keep_names
INSERT INTO month_names (month, org_id, key_id, name)
SELECT CAST(:month AS TEXT), id, '', name FROM organizations
UNION ALL SELECT CAST(:month AS TEXT), org_id, id, name FROM api_keys;

-- name: names_at_close
SELECT key_id, name FROM month_names WHERE month = :month AND org_id = :org_id;

-- name: names_now
SELECT '', name FROM organizations WHERE id = :org_id UNION ALL SELECT id, name FROM api_keys WHERE org_id = :org_id;

-- name: seal_month
INSERT INTO month_manifests (month, manifest, at) VALUES (:month, :manifest, :at);

-- name: balances_at_close
-- By the columns of `MonthSums`.
SELECT
    org_id, opening_micro_mxn, recharges_micro_mxn, bonuses_micro_mxn, refunds_micro_mxn, adjustments_micro_mxn,
    chargebacks_micro_mxn, charges_micro_mxn, orders, images
FROM month_balances
WHERE month = :month AND org_id > :after_id AND (CAST(:org_id AS TEXT) IS NULL OR org_id = :org_id)
ORDER BY org_id LIMIT :page;

-- name: month_sums
-- From the running totals of days, less what was posted to a later month, and with what was posted to this one late.
-- `posted > …` finds the few late rows by their own index; the CASTs keep SQLite from the index of months or of
-- organisations instead, which is every row.
SELECT
    o.id,
    CAST(
        (
            SELECT coalesce(sum(amount_micro_mxn), 0) FROM credit_transactions
            WHERE org_id = o.id AND number IS NOT NULL AND at < :first_at
        ) - (SELECT coalesce(sum(amount_micro_mxn), 0) FROM usage WHERE org_id = o.id AND day < :first)
        + coalesce(before.amount, 0)
    AS BIGINT),
    CAST(coalesce(c.recharges, 0) AS BIGINT), CAST(coalesce(c.bonuses, 0) AS BIGINT),
    CAST(coalesce(c.refunds, 0) AS BIGINT), CAST(coalesce(c.adjustments, 0) AS BIGINT),
    CAST(coalesce(c.chargebacks, 0) AS BIGINT),
    CAST(coalesce(u.amount, 0) - coalesce(later.amount, 0) + coalesce(late.amount, 0) AS BIGINT),
    CAST(coalesce(u.orders, 0) - coalesce(later.orders, 0) + coalesce(late.orders, 0) AS BIGINT),
    CAST(coalesce(u.images, 0) - coalesce(later.images, 0) + coalesce(late.images, 0) AS BIGINT)
FROM organizations AS o
LEFT JOIN (
    SELECT
        org_id, sum(CASE WHEN type = 'recharge' THEN amount_micro_mxn END) AS recharges,
        sum(CASE WHEN type = 'bonus' THEN amount_micro_mxn END) AS bonuses,
        sum(CASE WHEN type = 'refund' THEN amount_micro_mxn END) AS refunds,
        sum(CASE WHEN type = 'adjustment' THEN amount_micro_mxn END) AS adjustments,
        sum(CASE WHEN type = 'chargeback' THEN amount_micro_mxn END) AS chargebacks
    FROM credit_transactions WHERE number IS NOT NULL AND at >= :first_at AND at < :end_at GROUP BY org_id
) AS c ON c.org_id = o.id
LEFT JOIN (
    SELECT org_id, sum(amount_micro_mxn) AS amount, sum(orders) AS orders, sum(images) AS images
    FROM usage WHERE day BETWEEN :first AND :last GROUP BY org_id
) AS u ON u.org_id = o.id
LEFT JOIN (
    SELECT
        CAST(org_id AS TEXT) AS org_id, sum(amount_micro_mxn) AS amount, count(*) AS orders, sum(quantity) AS images
    FROM events WHERE posted > :month AND CAST(month AS TEXT) = :month AND "end" = 'charge' GROUP BY 1
) AS later ON later.org_id = o.id
LEFT JOIN (
    SELECT CAST(org_id AS TEXT) AS org_id, sum(amount_micro_mxn) AS amount FROM events
    WHERE posted >= :month AND CAST(month AS TEXT) < :month GROUP BY 1
) AS before ON before.org_id = o.id
LEFT JOIN (
    SELECT org_id, sum(amount_micro_mxn) AS amount, count(*) AS orders, sum(quantity) AS images
    FROM events WHERE posted = :month AND "end" = 'charge' GROUP BY org_id
) AS late ON late.org_id = o.id
WHERE o.id > :after_id AND (CAST(:org_id AS TEXT) IS NULL OR o.id = :org_id)
    AND (
        o.created_at < :end_at OR c.org_id IS NOT NULL OR u.org_id IS NOT NULL OR late.org_id IS NOT NULL
        OR EXISTS (
            SELECT 1 FROM credit_transactions WHERE org_id = o.id AND number IS NOT NULL AND at < :first_at
        )
        OR EXISTS (SELECT 1 FROM usage WHERE org_id = o.id AND day < :first)
    )
ORDER BY o.id LIMIT :page;

-- name: closed_at
SELECT closed_at FROM months WHERE month = :month;

-- name: month_use
-- Charges posted to their own month, by one of day, model and key: the running totals, less what came after the close,
-- which is found as in `month_sums`.
SELECT name, CAST(sum(orders) AS BIGINT), CAST(sum(images) AS BIGINT), CAST(sum(amount) AS BIGINT) FROM (
    SELECT
        CASE CAST(:by AS TEXT) WHEN 'day' THEN day WHEN 'model' THEN model ELSE key_id END AS name,
        orders, images, amount_micro_mxn AS amount
    FROM usage WHERE org_id = :org_id AND day BETWEEN :first AND :last
    UNION ALL
    SELECT
        CASE CAST(:by AS TEXT) WHEN 'day' THEN day WHEN 'model' THEN model ELSE key_id END,
        -1, -quantity, -amount_micro_mxn
    FROM events
    WHERE posted > :month AND CAST(org_id AS TEXT) = :org_id AND CAST(month AS TEXT) = :month AND "end" = 'charge'
) AS posts GROUP BY name HAVING sum(orders) > 0;

-- name: month_late
SELECT month, count(*), CAST(sum(quantity) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM events WHERE posted = :month AND org_id = :org_id AND "end" = 'charge' GROUP BY month ORDER BY month;

-- name: month_rate
-- Reads every charge that is posted to its own month, once: neither rates nor orders with tags have running totals. Is
-- there one rate only, and which? All orders, images and their price, and those of the orders that have tags.
SELECT
    min(fx_month), min(mxn_per_usd), min(fx_source),
    min(fx_month) = max(fx_month) AND min(mxn_per_usd) = max(mxn_per_usd) AND min(fx_source) = max(fx_source),
    count(*), CAST(coalesce(sum(quantity), 0) AS BIGINT), CAST(coalesce(sum(amount_micro_mxn), 0) AS BIGINT),
    count(tags), CAST(coalesce(sum(CASE WHEN tags IS NOT NULL THEN quantity END), 0) AS BIGINT),
    CAST(coalesce(sum(CASE WHEN tags IS NOT NULL THEN amount_micro_mxn END), 0) AS BIGINT)
FROM events WHERE month = :month AND org_id = :org_id AND posted IS NULL AND "end" = 'charge';

-- name: month_rates
-- The same for a month of several rates, by the columns of `RateUse`. It sorts the charges, which takes twice as long.
SELECT
    fx_month, mxn_per_usd, fx_source, CASE WHEN tags IS NULL THEN 0 ELSE 1 END, count(*),
    CAST(sum(quantity) AS BIGINT), CAST(sum(amount_micro_mxn) AS BIGINT)
FROM events WHERE month = :month AND org_id = :org_id AND posted IS NULL AND "end" = 'charge' GROUP BY 1, 2, 3, 4;

-- name: late_rates
SELECT
    fx_month, mxn_per_usd, fx_source, -1, count(*), CAST(sum(quantity) AS BIGINT),
    CAST(sum(amount_micro_mxn) AS BIGINT)
FROM events WHERE posted = :month AND org_id = :org_id AND "end" = 'charge' GROUP BY 1, 2, 3;

-- name: month_paid
-- By the columns of `PaidSums`.
SELECT
    type, iva_rate, count(*), CAST(sum(amount_micro_mxn) AS BIGINT), CAST(coalesce(sum(base_micro_mxn), 0) AS BIGINT),
    CAST(coalesce(sum(iva_micro_mxn), 0) AS BIGINT)
FROM credit_transactions
WHERE org_id = :org_id AND number IS NOT NULL AND at >= :first_at AND at < :end_at
GROUP BY type, iva_rate ORDER BY type, iva_rate;

-- name: closed_through
-- The last month that is closed; months close in their order.
SELECT max(month), max(ends_at), max(closed_at) FROM months;

-- name: ends
SELECT event_id, "end" FROM events WHERE event_id IN (:ids);

-- name: ended
SELECT event_id, "end", reason, images FROM events WHERE event_id IN (:ids);

-- name: register_sink
INSERT INTO sinks (name, profile, since) VALUES (:name, :profile, :at)
ON CONFLICT (name) DO UPDATE SET profile = excluded.profile;

-- name: sinks
SELECT s.name, s.profile, s.since, s.delivered_at, s.error FROM sinks AS s ORDER BY s.name;

-- name: remove_sink
DELETE FROM sinks WHERE name = :name RETURNING name;

-- name: remove_from_outbox
DELETE FROM outbox WHERE sink = :sink AND (id, kind) IN (
    SELECT id, kind FROM outbox WHERE sink = :sink ORDER BY id, kind LIMIT :page
) RETURNING id;

-- name: undelivered
SELECT count(*), min(at) FROM outbox WHERE sink = :sink AND set_aside_at IS NULL;

-- name: count_outbox_set_aside
SELECT count(*) FROM outbox WHERE sink = :sink AND set_aside_at IS NOT NULL;

-- name: outbox_set_aside
SELECT id, kind, at, set_aside_at, error FROM outbox
WHERE sink = :sink AND set_aside_at IS NOT NULL AND (set_aside_at, id, kind) > (:after_at, :after_id, :after_kind)
ORDER BY set_aside_at, id, kind LIMIT :page;

-- name: charges_to_send
-- By the columns of `Sold`.
SELECT
    event_id, event_id, org_id, key_id, ended_us, NULL, day, month, coalesce(posted, month), region, model,
    coalesce(route_provider, provider), coalesce(route_upstream, upstream), size, quality,
    images_asked, quantity, variant, usd_per_image, price_book, markup, mxn_per_usd, fx_month, unit_micro_mxn,
    usd_measured, amount_micro_mxn
FROM events WHERE event_id IN (:ids) AND "end" = 'charge';

-- name: refunds_to_send
SELECT
    c.id, c.order_id, c.org_id, e.key_id, NULL, c.at, NULL, NULL, NULL, e.region, e.model,
    coalesce(e.route_provider, e.provider), coalesce(e.route_upstream, e.upstream), e.size, e.quality, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, -c.amount_micro_mxn
FROM credit_transactions AS c LEFT JOIN events AS e ON e.event_id = c.order_id AND e."end" = 'charge'
WHERE c.id IN (:ids) AND c.type = 'refund';

-- name: sink_took
UPDATE sinks SET delivered_at = :at, error = NULL
WHERE name = :sink AND (delivered_at IS NULL OR delivered_at < :before OR error IS NOT NULL);

-- name: sink_failed
UPDATE sinks SET error = :error WHERE name = :sink AND (error IS NULL OR error <> :error);

-- name: send_again
-- What is refused again meanwhile is left for the next time.
UPDATE outbox SET set_aside_at = NULL, next_at = :at, attempts = 0, error = NULL
WHERE sink = :sink AND (id, kind) IN (
    SELECT id, kind FROM outbox WHERE sink = :sink AND set_aside_at < :at ORDER BY set_aside_at LIMIT :page
) RETURNING id;

-- name: charges_of_days
SELECT event_id, org_id, number FROM events
WHERE "end" = 'charge' AND month = :month AND day BETWEEN :first AND :last
    AND (org_id, number, event_id) > (:after_org_id, :after_number, :after_event_id)
ORDER BY org_id, number, event_id LIMIT :page;

-- name: refunds_of_days
SELECT id, org_id, number, at FROM credit_transactions
WHERE number IS NOT NULL AND type = 'refund' AND at >= :first_at AND at < :end_at
    AND (at, org_id, number) > (:after_at, :after_org_id, :after_number)
ORDER BY at, org_id, number LIMIT :page;

-- name: put_into_outbox
INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
SELECT :sink, event_id, 'charge', event_id, :at, :at FROM events WHERE event_id IN (:ids) AND "end" = 'charge'
ON CONFLICT (sink, id, kind) DO UPDATE SET set_aside_at = NULL, next_at = excluded.next_at, attempts = 0, error = NULL;

-- name: put_refunds_into_outbox
INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
SELECT :sink, id, 'refund', order_id, :at, :at FROM credit_transactions WHERE id IN (:ids) AND type = 'refund'
ON CONFLICT (sink, id, kind) DO UPDATE SET set_aside_at = NULL, next_at = excluded.next_at, attempts = 0, error = NULL;

-- name: placed
-- Orders that a provider may know, by month, organisation and number. The charge of an order wins over its expiry.
SELECT
    month, org_id, number, event_id, coalesce(route_upstream, upstream), "end" = 'charge', admitted_us, ended_us, quantity,
    upstream_ids, coalesce(route_usd_per_image, usd_per_image), coalesce(upstream_usd, usd_measured)
FROM events AS e
WHERE month <= :last_month AND coalesce(route_provider, provider) = :provider AND ended_us >= :first_us AND admitted_us < :end_us
    AND ("end" = 'charge' OR NOT EXISTS (SELECT 1 FROM events AS c WHERE c.event_id = e.event_id AND c."end" = 'charge'))
    AND (month, org_id, number, event_id) > (:after_month, :after_org_id, :after_number, :after_event_id)
ORDER BY month, org_id, number, event_id LIMIT :page;

-- name: charged_in
SELECT event_id FROM events WHERE event_id IN (:ids) AND "end" = 'charge' AND coalesce(posted, month) = :month;

-- name: add_reconciliation
INSERT INTO reconciliations (month, provider, ok, ledger_usd, billed_usd, off_usd, findings, report, actor, at)
VALUES (:month, :provider, :ok, :ledger_usd, :billed_usd, :off_usd, :findings, :report, :actor, :at) RETURNING id;

-- name: reconciliations
-- By the columns of `Reconciliation`.
SELECT month, provider, ok, ledger_usd, billed_usd, off_usd, findings, report, actor, at, id FROM reconciliations
WHERE (CAST(:month AS TEXT) IS NULL OR month = :month) AND id < :before ORDER BY id DESC LIMIT :page;

-- name: add_webhook
INSERT INTO webhooks (id, org_id, url, events, created_at) VALUES (:webhook_id, :org_id, :url, :events, :created_at);

-- name: count_webhooks
SELECT count(*) FROM webhooks WHERE org_id = :org_id AND disabled_at IS NULL;

-- name: webhooks
-- By the columns of `Webhook`.
SELECT id, org_id, url, events, created_at, disabled_at FROM webhooks WHERE org_id = :org_id ORDER BY created_at, id;

-- name: webhook
SELECT id, org_id, url, events, created_at, disabled_at FROM webhooks WHERE id = :webhook_id;

-- name: webhooks_of
SELECT id, org_id, url, events, created_at, disabled_at FROM webhooks
WHERE org_id IN (:ids) AND disabled_at IS NULL ORDER BY org_id, created_at, id;

-- name: orgs_with_webhooks
SELECT DISTINCT org_id FROM webhooks WHERE disabled_at IS NULL AND org_id > :after_id ORDER BY org_id LIMIT :page;

-- name: disable_webhook
UPDATE webhooks SET disabled_at = :at WHERE id = :webhook_id AND disabled_at IS NULL RETURNING id;

-- name: give_up_webhook
UPDATE webhook_deliveries SET state = 'set_aside', error = :error, ended_at = :at
WHERE webhook_id = :webhook_id AND state = 'waiting';

-- name: add_webhook_secret
INSERT INTO webhook_secrets (org_id, created_at, secret) VALUES (:org_id, :at, :secret);

-- name: expire_webhook_secrets
UPDATE webhook_secrets SET expires_at = :until WHERE org_id = :org_id AND (expires_at IS NULL OR expires_at > :until);

-- name: webhook_secrets
SELECT org_id, secret FROM webhook_secrets WHERE org_id IN (:ids) AND (expires_at IS NULL OR expires_at > :now)
ORDER BY org_id, created_at DESC;

-- name: webhooks_due
SELECT 1 FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= :now LIMIT 1;

-- name: conclude_webhook
-- What was delivered is, whoever has it by now; anything else counts only for whoever still has it, and not if its
-- webhook was disabled meanwhile.
UPDATE webhook_deliveries SET state = :state, next_at = :next_at, error = :error, ended_at = :ended_at
WHERE id = :delivery_id
    AND (state = 'waiting' AND next_at = :lease OR state <> 'delivered' AND CAST(:state AS TEXT) = 'delivered');

-- name: webhook_deliveries
-- By the columns of `WebhookDelivery`.
SELECT id, org_id, webhook_id, url, type, subject, at, state, attempts, next_at, error, ended_at FROM webhook_deliveries
WHERE org_id = :org_id AND (CAST(:state AS TEXT) IS NULL OR state = :state) AND (at, id) < (:before_at, :before_id)
ORDER BY at DESC, id DESC LIMIT :page;

-- name: webhook_delivery
SELECT id, org_id, webhook_id, url, type, subject, at, state, attempts, next_at, error, ended_at FROM webhook_deliveries
WHERE id = :delivery_id;

-- name: replay_delivery
UPDATE webhook_deliveries
SET state = 'waiting', since = :at, next_at = :at, attempts = 0, error = NULL, ended_at = NULL
WHERE id = :delivery_id;

-- name: replay_webhook
UPDATE webhook_deliveries
SET state = 'waiting', since = :at, next_at = :at, attempts = 0, error = NULL, ended_at = NULL
WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE webhook_id = :webhook_id AND state = 'set_aside' ORDER BY at LIMIT :page
) RETURNING id;

-- name: late_webhooks
-- Those whose server fails so slowly that their turn does not come in time.
UPDATE webhook_deliveries SET state = 'set_aside', error = coalesce(error, :error), ended_at = :at
WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= :at AND since < :before LIMIT :page
) RETURNING id;

-- name: forget_webhooks
DELETE FROM webhook_deliveries
WHERE id IN (
    SELECT id FROM webhook_deliveries WHERE state <> 'waiting' AND ended_at < :before ORDER BY ended_at LIMIT :page
) RETURNING id;

-- name: webhook_lag
-- By the columns of `WebhookLag`. A webhook that somebody has disabled needs nobody any more.
SELECT
    (SELECT count(*) FROM webhook_deliveries WHERE state = 'waiting'),
    (SELECT min(next_at) FROM webhook_deliveries WHERE state = 'waiting' AND next_at <= :now),
    (
        SELECT count(*) FROM webhook_deliveries
        WHERE state = 'set_aside' AND ended_at > :since
            AND (webhook_id IS NULL OR webhook_id IN (SELECT id FROM webhooks WHERE disabled_at IS NULL))
    );

-- name: expiring_keys
-- By the columns of `ExpiringKey`.
SELECT id, org_id, name, expires_at FROM api_keys
WHERE revoked_at IS NULL AND expires_at > :now AND expires_at <= :until AND id > :after_id
    AND org_id IN (SELECT org_id FROM webhooks WHERE disabled_at IS NULL)
ORDER BY id LIMIT :page;
