-- Months that are closed, and the month to which an event is posted that came later; for whom an order was, and what its
-- provider calls it.

ALTER TABLE events
    -- The month to which it is posted, if its own was closed when it was booked (rule 37).
    ADD COLUMN posted bytewise,
    -- Pseudonyms of `user` and `safety_identifier`; the clear text is in `end_users`.
    ADD COLUMN end_user bytewise,
    ADD COLUMN safety_id bytewise,
    -- A JSON list of texts, and a JSON object of texts.
    ADD COLUMN tags bytewise,
    ADD COLUMN metadata bytewise,
    -- The provider's own ids of the requests, a JSON list; and its own figure in USD for them all, where it gives one.
    ADD COLUMN upstream_ids bytewise,
    ADD COLUMN upstream_usd bytewise;
CREATE INDEX events_by_posting ON events (posted, org_id, number) WHERE posted IS NOT NULL;

-- What an adjustment corrects: an order, a credit, or a month's rate.
ALTER TABLE credit_transactions ADD COLUMN corrects bytewise;

-- Whom a pseudonym stands for. No record: whoever asks for it is erased here, and the events keep the pseudonym.
CREATE TABLE end_users (
    org_id    bytewise NOT NULL,
    pseudonym bytewise NOT NULL,
    value     bytewise NOT NULL,
    at        bytewise NOT NULL,
    PRIMARY KEY (org_id, pseudonym)
);
-- What pseudonyms are keyed by: one row, the same for every gateway.
CREATE TABLE pseudonym_keys (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    secret bytewise NOT NULL
);
INSERT INTO pseudonym_keys
SELECT 1, encode(sha256((gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text)::bytea), 'hex');

-- What was charged by end user, tag and pair of the metadata, as in `usage`: an order counts for each that it has.
CREATE TABLE usage_of (
    org_id           bytewise NOT NULL,
    day              bytewise NOT NULL,
    key_id           bytewise NOT NULL,
    model            bytewise NOT NULL,
    kind             bytewise NOT NULL CHECK (kind IN ('user', 'safety_identifier', 'tag', 'metadata')),
    name             bytewise NOT NULL,
    orders           BIGINT NOT NULL,
    images           BIGINT NOT NULL,
    amount_micro_mxn BIGINT NOT NULL,
    PRIMARY KEY (org_id, day, key_id, model, kind, name)
);
CREATE FUNCTION add_to_usage_of() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM booked
        WHERE end_user IS NOT NULL OR safety_id IS NOT NULL OR tags IS NOT NULL OR metadata IS NOT NULL
    ) THEN
        RETURN NULL;
    END IF;
    INSERT INTO usage_of AS total (org_id, day, key_id, model, kind, name, orders, images, amount_micro_mxn)
    SELECT org_id, day, key_id, model, of.kind, of.name, count(*), sum(quantity), sum(amount_micro_mxn)
    FROM booked CROSS JOIN LATERAL (
        SELECT 'user' AS kind, end_user::text AS name WHERE end_user IS NOT NULL
        UNION ALL SELECT 'safety_identifier', safety_id WHERE safety_id IS NOT NULL
        UNION ALL SELECT 'tag', json_array_elements_text(tags::json) WHERE tags IS NOT NULL
        UNION ALL SELECT 'metadata', pair.key || '=' || pair.value
            FROM json_each_text(coalesce(metadata, '{}')::json) AS pair
    ) AS of
    WHERE "end" = 'charge'
    GROUP BY org_id, day, key_id, model, of.kind, of.name ORDER BY org_id, day, key_id, model, of.kind, of.name
    ON CONFLICT (org_id, day, key_id, model, kind, name) DO UPDATE SET
        orders = total.orders + excluded.orders,
        images = total.images + excluded.images,
        amount_micro_mxn = total.amount_micro_mxn + excluded.amount_micro_mxn;
    RETURN NULL;
END $$;
-- After `events_are_then_used`, by their names, for the same reason.
CREATE TRIGGER events_are_used_by AFTER INSERT ON events REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION add_to_usage_of();

-- A closed month: from its row on, what is late is posted to a later one. Its sums are taken afterwards, in peace.
CREATE TABLE months (
    month     bytewise PRIMARY KEY,
    -- Midnight in Mexico City, in UTC: what is entered before it would change the month.
    ends_at   bytewise NOT NULL,
    closed_at bytewise NOT NULL,
    closed_by bytewise NOT NULL
);
-- Its manifest, as it was signed; absent while it is being made.
CREATE TABLE month_manifests (
    month    bytewise PRIMARY KEY REFERENCES months (month),
    manifest bytewise NOT NULL,
    at       bytewise NOT NULL
);
-- Opening balance and what was posted, by organisation. Charges are positive here; the other columns have their signs.
CREATE TABLE month_balances (
    month                 bytewise NOT NULL REFERENCES months (month),
    org_id                bytewise NOT NULL,
    opening_micro_mxn     BIGINT NOT NULL,
    recharges_micro_mxn   BIGINT NOT NULL,
    bonuses_micro_mxn     BIGINT NOT NULL,
    refunds_micro_mxn     BIGINT NOT NULL,
    adjustments_micro_mxn BIGINT NOT NULL,
    chargebacks_micro_mxn BIGINT NOT NULL,
    charges_micro_mxn     BIGINT NOT NULL,
    orders                BIGINT NOT NULL,
    images                BIGINT NOT NULL,
    closing_micro_mxn     BIGINT NOT NULL,
    CHECK (
        closing_micro_mxn = opening_micro_mxn + recharges_micro_mxn + bonuses_micro_mxn + refunds_micro_mxn
            + adjustments_micro_mxn + chargebacks_micro_mxn - charges_micro_mxn
    ),
    PRIMARY KEY (month, org_id)
);
-- What organisations and keys were called at the close; a row without key is the organisation's.
CREATE TABLE month_names (
    month  bytewise NOT NULL REFERENCES months (month),
    org_id bytewise NOT NULL,
    key_id bytewise NOT NULL,
    name   bytewise NOT NULL,
    PRIMARY KEY (month, org_id, key_id)
);

-- A closed month never changes, by any path (rule 37). Whoever books holds a lock that a close waits for, so this only
-- refuses what does not know of it.
CREATE FUNCTION keep_closed_months() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM booked JOIN months ON months.month = coalesce(booked.posted, booked.month)) THEN
        RAISE EXCEPTION 'an event is of a month that is closed' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER closed_months_stay AFTER INSERT ON events REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION keep_closed_months();
ALTER TABLE events ENABLE ALWAYS TRIGGER closed_months_stay;
CREATE FUNCTION keep_closed_credits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM months WHERE NEW.at < ends_at) THEN
        RAISE EXCEPTION 'a credit is of a month that is closed' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER closed_months_stay BEFORE INSERT ON credit_transactions
    FOR EACH ROW WHEN (NEW.number IS NOT NULL) EXECUTE FUNCTION keep_closed_credits();
ALTER TABLE credit_transactions ENABLE ALWAYS TRIGGER closed_months_stay;

DO $$
DECLARE kept name;
BEGIN
    FOREACH kept IN ARRAY ARRAY[
        'months', 'month_manifests', 'month_balances', 'month_names', 'pseudonym_keys'
    ] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse()',
            kept
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', kept);
    END LOOP;
END $$;
