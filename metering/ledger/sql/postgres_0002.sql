-- Keys with an end, models and limits of their own; quotas; plans; who did what; what customers used, and are told.

ALTER TABLE organizations
    ADD COLUMN in_flight BIGINT CHECK (in_flight >= 0),
    ADD COLUMN images_per_day BIGINT CHECK (images_per_day >= 0),
    ADD COLUMN images_per_month BIGINT CHECK (images_per_month >= 0),
    ADD COLUMN micro_mxn_per_month BIGINT CHECK (micro_mxn_per_month >= 0);

ALTER TABLE api_keys
    ADD COLUMN expires_at bytewise,
    -- Between spaces; empty for all.
    ADD COLUMN models bytewise NOT NULL DEFAULT '',
    ADD COLUMN requests_per_minute BIGINT CHECK (requests_per_minute > 0),
    ADD COLUMN images_per_minute BIGINT CHECK (images_per_minute > 0),
    ADD COLUMN in_flight BIGINT CHECK (in_flight > 0),
    ADD COLUMN images_per_day BIGINT CHECK (images_per_day > 0),
    ADD COLUMN images_per_month BIGINT CHECK (images_per_month > 0),
    ADD COLUMN micro_mxn_per_month BIGINT CHECK (micro_mxn_per_month > 0);

-- The plans of the file that a gateway read last, so that every process projects the same.
CREATE TABLE plans (
    name                bytewise PRIMARY KEY,
    requests_per_minute BIGINT NOT NULL CHECK (requests_per_minute > 0),
    images_per_minute   BIGINT NOT NULL CHECK (images_per_minute > 0),
    in_flight           BIGINT CHECK (in_flight > 0),
    images_per_day      BIGINT CHECK (images_per_day > 0),
    images_per_month    BIGINT CHECK (images_per_month > 0),
    micro_mxn_per_month BIGINT CHECK (micro_mxn_per_month > 0),
    at                  bytewise NOT NULL
);

-- Who did what to which organisation. Never a key.
CREATE TABLE audit (
    id      BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      bytewise NOT NULL,
    actor   bytewise NOT NULL,
    action  bytewise NOT NULL,
    org_id  bytewise,
    target  bytewise NOT NULL,
    details bytewise NOT NULL
);
CREATE INDEX audit_by_org ON audit (org_id, id);

-- Writes by idempotency key: what was asked, and what it was done to. No record: old rows may be deleted.
CREATE TABLE writes (
    actor       bytewise NOT NULL,
    key         bytewise NOT NULL,
    fingerprint bytewise NOT NULL,
    target      bytewise NOT NULL,
    at          bytewise NOT NULL,
    PRIMARY KEY (actor, key)
);

-- What was charged, by day, model and key: derived, so that nobody has to read a whole history. It is made anew by
--   DELETE FROM usage; and the statement at its end.
CREATE TABLE usage (
    org_id           bytewise NOT NULL,
    day              bytewise NOT NULL,
    key_id           bytewise NOT NULL,
    model            bytewise NOT NULL,
    orders           BIGINT NOT NULL,
    images           BIGINT NOT NULL,
    amount_micro_mxn BIGINT NOT NULL,
    last_us          BIGINT NOT NULL,
    PRIMARY KEY (org_id, day, key_id, model)
);
-- After `events_are_summed`, by their names: so whoever adds to an organisation's usage has its total locked already,
-- and two consumers never wait for each other in a circle.
CREATE FUNCTION add_to_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage AS total (org_id, day, key_id, model, orders, images, amount_micro_mxn, last_us)
    SELECT org_id, day, key_id, model, count(*), sum(quantity), sum(amount_micro_mxn), max(admitted_us)
    FROM booked WHERE "end" = 'charge' GROUP BY org_id, day, key_id, model ORDER BY org_id, day, key_id, model
    ON CONFLICT (org_id, day, key_id, model) DO UPDATE SET
        orders = total.orders + excluded.orders,
        images = total.images + excluded.images,
        amount_micro_mxn = total.amount_micro_mxn + excluded.amount_micro_mxn,
        last_us = greatest(total.last_us, excluded.last_us);
    RETURN NULL;
END $$;
CREATE TRIGGER events_are_then_used AFTER INSERT ON events REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION add_to_usage();
INSERT INTO usage
SELECT org_id, day, key_id, model, count(*), sum(quantity), sum(amount_micro_mxn), max(admitted_us)
FROM events WHERE "end" = 'charge' GROUP BY org_id, day, key_id, model;

-- What organisations are told: a quota that is nearly used, a balance that is low. Once for each threshold and period.
CREATE TABLE notices (
    org_id     bytewise NOT NULL,
    key_id     bytewise NOT NULL,
    what       bytewise NOT NULL,
    percent    BIGINT NOT NULL,
    period     bytewise NOT NULL,
    limited_to BIGINT NOT NULL,
    used       BIGINT NOT NULL,
    at         bytewise NOT NULL,
    PRIMARY KEY (org_id, key_id, what, percent, period)
);
CREATE INDEX notices_by_time ON notices (org_id, at);

DO $$
DECLARE kept name;
BEGIN
    FOREACH kept IN ARRAY ARRAY['audit', 'notices'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse()',
            kept
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', kept);
    END LOOP;
END $$;
