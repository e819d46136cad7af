-- Months that are closed, and the month to which an event is posted that came later; for whom an order was, and what its
-- provider calls it.

-- The month to which it is posted, if its own was closed when it was booked (rule 37).
ALTER TABLE events ADD COLUMN posted TEXT;
-- Pseudonyms of `user` and `safety_identifier`; the clear text is in `end_users`.
ALTER TABLE events ADD COLUMN end_user TEXT;
ALTER TABLE events ADD COLUMN safety_id TEXT;
-- A JSON list of texts, and a JSON object of texts.
ALTER TABLE events ADD COLUMN tags TEXT;
ALTER TABLE events ADD COLUMN metadata TEXT;
-- The provider's own ids of the requests, a JSON list; and its own figure in USD for them all, where it gives one.
ALTER TABLE events ADD COLUMN upstream_ids TEXT;
ALTER TABLE events ADD COLUMN upstream_usd TEXT;
CREATE INDEX events_by_posting ON events (posted, org_id, number) WHERE posted IS NOT NULL;

-- What an adjustment corrects: an order, a credit, or a month's rate.
ALTER TABLE credit_transactions ADD COLUMN corrects TEXT;

-- Whom a pseudonym stands for. No record: whoever asks for it is erased here, and the events keep the pseudonym.
CREATE TABLE end_users (
    org_id    TEXT NOT NULL,
    pseudonym TEXT NOT NULL,
    value     TEXT NOT NULL,
    at        TEXT NOT NULL,
    PRIMARY KEY (org_id, pseudonym)
) STRICT;
-- What pseudonyms are keyed by: one row, the same for every gateway.
CREATE TABLE pseudonym_keys (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    secret TEXT NOT NULL
) STRICT;
INSERT INTO pseudonym_keys VALUES (1, lower(hex(randomblob(32))));

-- What was charged by end user, tag and pair of the metadata, as in `usage`: an order counts for each that it has.
CREATE TABLE usage_of (
    org_id           TEXT NOT NULL,
    day              TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    model            TEXT NOT NULL,
    kind             TEXT NOT NULL CHECK (kind IN ('user', 'safety_identifier', 'tag', 'metadata')),
    name             TEXT NOT NULL,
    orders           INTEGER NOT NULL,
    images           INTEGER NOT NULL,
    amount_micro_mxn INTEGER NOT NULL,
    PRIMARY KEY (org_id, day, key_id, model, kind, name)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER events_are_used_by AFTER INSERT ON events
WHEN NEW."end" = 'charge' AND (
    NEW.end_user IS NOT NULL OR NEW.safety_id IS NOT NULL OR NEW.tags IS NOT NULL OR NEW.metadata IS NOT NULL
)
BEGIN
    INSERT INTO usage_of
    SELECT NEW.org_id, NEW.day, NEW.key_id, NEW.model, kind, name, 1, NEW.quantity, NEW.amount_micro_mxn FROM (
        SELECT 'user' AS kind, NEW.end_user AS name WHERE NEW.end_user IS NOT NULL
        UNION ALL SELECT 'safety_identifier', NEW.safety_id WHERE NEW.safety_id IS NOT NULL
        UNION ALL SELECT 'tag', tag.value FROM json_each(coalesce(NEW.tags, '[]')) AS tag
        UNION ALL SELECT 'metadata', pair.key || '=' || pair.value FROM json_each(coalesce(NEW.metadata, '{}')) AS pair
    ) WHERE true
    ON CONFLICT (org_id, day, key_id, model, kind, name) DO UPDATE SET
        orders = orders + 1,
        images = images + excluded.images,
        amount_micro_mxn = amount_micro_mxn + excluded.amount_micro_mxn;
END;

-- A closed month: from its row on, what is late is posted to a later one. Its sums are taken afterwards, in peace.
CREATE TABLE months (
    month     TEXT PRIMARY KEY,
    -- Midnight in Mexico City, in UTC: what is entered before it would change the month.
    ends_at   TEXT NOT NULL,
    closed_at TEXT NOT NULL,
    closed_by TEXT NOT NULL
) STRICT;
-- Its manifest, as it was signed; absent while it is being made.
CREATE TABLE month_manifests (
    month    TEXT PRIMARY KEY REFERENCES months (month),
    manifest TEXT NOT NULL,
    at       TEXT NOT NULL
) STRICT;
-- Opening balance and what was posted, by organisation. Charges are positive here; the other columns have their signs.
CREATE TABLE month_balances (
    month                 TEXT NOT NULL REFERENCES months (month),
    org_id                TEXT NOT NULL,
    opening_micro_mxn     INTEGER NOT NULL,
    recharges_micro_mxn   INTEGER NOT NULL,
    bonuses_micro_mxn     INTEGER NOT NULL,
    refunds_micro_mxn     INTEGER NOT NULL,
    adjustments_micro_mxn INTEGER NOT NULL,
    chargebacks_micro_mxn INTEGER NOT NULL,
    charges_micro_mxn     INTEGER NOT NULL,
    orders                INTEGER NOT NULL,
    images                INTEGER NOT NULL,
    closing_micro_mxn     INTEGER NOT NULL,
    CHECK (
        closing_micro_mxn = opening_micro_mxn + recharges_micro_mxn + bonuses_micro_mxn + refunds_micro_mxn
            + adjustments_micro_mxn + chargebacks_micro_mxn - charges_micro_mxn
    ),
    PRIMARY KEY (month, org_id)
) STRICT;
-- What organisations and keys were called at the close; a row without key is the organisation's.
CREATE TABLE month_names (
    month  TEXT NOT NULL REFERENCES months (month),
    org_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    name   TEXT NOT NULL,
    PRIMARY KEY (month, org_id, key_id)
) STRICT;

-- A closed month never changes, by any path (rule 37).
CREATE TRIGGER events_of_closed_months BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM months WHERE month = coalesce(NEW.posted, NEW.month))
BEGIN SELECT RAISE(ABORT, 'an event is of a month that is closed'); END;
CREATE TRIGGER credits_of_closed_months BEFORE INSERT ON credit_transactions
WHEN NEW.number IS NOT NULL AND EXISTS (SELECT 1 FROM months WHERE NEW.at < ends_at)
BEGIN SELECT RAISE(ABORT, 'a credit is of a month that is closed'); END;

CREATE TRIGGER months_stay BEFORE UPDATE ON months BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER months_keep BEFORE DELETE ON months BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER months_once BEFORE INSERT ON months
WHEN EXISTS (SELECT 1 FROM months WHERE month = NEW.month OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_manifests_stay BEFORE UPDATE ON month_manifests BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_manifests_keep BEFORE DELETE ON month_manifests BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_manifests_once BEFORE INSERT ON month_manifests
WHEN EXISTS (SELECT 1 FROM month_manifests WHERE month = NEW.month OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_balances_stay BEFORE UPDATE ON month_balances BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_balances_keep BEFORE DELETE ON month_balances BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_balances_once BEFORE INSERT ON month_balances
WHEN EXISTS (
    SELECT 1 FROM month_balances WHERE (month, org_id) = (NEW.month, NEW.org_id) OR rowid = NEW.rowid
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_names_stay BEFORE UPDATE ON month_names BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_names_keep BEFORE DELETE ON month_names BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_names_once BEFORE INSERT ON month_names
WHEN EXISTS (
    SELECT 1 FROM month_names WHERE (month, org_id, key_id) = (NEW.month, NEW.org_id, NEW.key_id) OR rowid = NEW.rowid
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER pseudonym_keys_stay BEFORE UPDATE ON pseudonym_keys BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER pseudonym_keys_keep BEFORE DELETE ON pseudonym_keys BEGIN SELECT RAISE(ABORT, 'append-only'); END;
