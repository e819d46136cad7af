-- The record. Money is integer micro-MXN, prices and rates are decimal text, times are ISO 8601 in UTC, days and
-- months are Mexico City's.

CREATE TABLE organizations (
    id                  TEXT PRIMARY KEY,
    name                TEXT NOT NULL UNIQUE,
    plan                TEXT NOT NULL,
    requests_per_minute INTEGER CHECK (requests_per_minute > 0),
    images_per_minute   INTEGER CHECK (images_per_minute > 0),
    created_at          TEXT NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL REFERENCES organizations (id),
    name       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT;
CREATE INDEX api_keys_by_org ON api_keys (org_id, created_at);

-- One row for each thing that Redis has to be told: what is projected, and up to where.
CREATE TABLE changes (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id TEXT NOT NULL REFERENCES organizations (id),
    what   TEXT NOT NULL,
    at     TEXT NOT NULL
) STRICT;
CREATE INDEX changes_by_org ON changes (org_id, seq);

-- balance = SUM(amount_micro_mxn). Credits are numbered per organisation; consumption is the consumer's, one per
-- charged event, and carries the event's id.
CREATE TABLE credit_transactions (
    id               TEXT NOT NULL,
    org_id           TEXT NOT NULL REFERENCES organizations (id),
    type             TEXT NOT NULL CHECK (type IN ('bonus', 'recharge', 'refund', 'adjustment', 'consumption')),
    number           INTEGER,
    amount_micro_mxn INTEGER NOT NULL CHECK (amount_micro_mxn <> 0),
    at               TEXT NOT NULL,
    CHECK ((type = 'consumption') = (number IS NULL)),
    CHECK (type = 'adjustment' OR (type = 'consumption') = (amount_micro_mxn < 0)),
    UNIQUE (org_id, number)
) STRICT;
CREATE UNIQUE INDEX credits_by_id ON credit_transactions (id) WHERE type <> 'consumption';
CREATE UNIQUE INDEX consumption_by_event ON credit_transactions (id) WHERE type = 'consumption';

CREATE TABLE events (
    event_id         TEXT NOT NULL,
    org_id           TEXT NOT NULL,
    number           INTEGER NOT NULL,
    key_id           TEXT NOT NULL,
    model            TEXT NOT NULL,
    provider         TEXT NOT NULL,
    upstream         TEXT NOT NULL,
    size             TEXT NOT NULL,
    quality          TEXT,
    region           TEXT NOT NULL,
    day              TEXT NOT NULL,
    month            TEXT NOT NULL,
    images_asked     INTEGER NOT NULL CHECK (images_asked BETWEEN 1 AND 8),
    "end"            TEXT NOT NULL CHECK ("end" IN ('charge', 'void', 'expiry')),
    reason           TEXT NOT NULL,
    quantity         INTEGER NOT NULL CHECK (quantity BETWEEN 0 AND images_asked),
    variant          TEXT NOT NULL,
    usd_per_image    TEXT NOT NULL,
    price_book       TEXT NOT NULL,
    markup           TEXT NOT NULL,
    mxn_per_usd      TEXT NOT NULL,
    fx_month         TEXT NOT NULL,
    fx_source        TEXT NOT NULL,
    unit_micro_mxn   INTEGER NOT NULL CHECK (unit_micro_mxn > 0),
    usd_measured     TEXT,
    amount_micro_mxn INTEGER NOT NULL CHECK (amount_micro_mxn BETWEEN 0 AND quantity * unit_micro_mxn),
    admitted_us      INTEGER NOT NULL,
    ended_us         INTEGER NOT NULL,
    images           TEXT NOT NULL,
    booked_at        TEXT NOT NULL,
    once             TEXT,
    CHECK (("end" = 'charge') = (quantity > 0)),
    CHECK (usd_measured IS NOT NULL OR amount_micro_mxn = quantity * unit_micro_mxn)
) STRICT;
-- An order's end, once; and its charge, once, for a journal may say that an order was answered whose hold had run out.
CREATE UNIQUE INDEX events_by_id ON events (event_id, ("end" = 'charge'));
CREATE INDEX events_by_org ON events (org_id, number, amount_micro_mxn);
CREATE INDEX events_with_key ON events (org_id, ended_us) WHERE once IS NOT NULL;
CREATE INDEX events_by_month ON events (month, org_id, number);

-- How many events an organisation has and what they sum up to: derived, so that nobody has to read a whole history.
-- `ghub verify` recounts it; it is made anew by
--   DELETE FROM charged; INSERT INTO charged SELECT org_id, count(*), sum(amount_micro_mxn) FROM events GROUP BY org_id;
CREATE TABLE charged (
    org_id           TEXT PRIMARY KEY,
    events           INTEGER NOT NULL,
    amount_micro_mxn INTEGER NOT NULL
) STRICT;
CREATE TRIGGER events_are_summed AFTER INSERT ON events BEGIN
    INSERT INTO charged VALUES (NEW.org_id, 1, NEW.amount_micro_mxn)
    ON CONFLICT (org_id) DO UPDATE SET
        events = events + 1, amount_micro_mxn = amount_micro_mxn + excluded.amount_micro_mxn;
END;

-- What came over the stream and could not be booked, for a person to look at.
CREATE TABLE events_set_aside (
    partition INTEGER NOT NULL,
    entry_id  TEXT NOT NULL,
    error     TEXT NOT NULL,
    fields    BLOB NOT NULL,
    at        TEXT NOT NULL,
    PRIMARY KEY (partition, entry_id)
) STRICT;

-- What an order's owner may fetch again, beside its images. No record: old rows may be deleted.
CREATE TABLE results (
    request_id TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL,
    ended_us   INTEGER NOT NULL,
    document   TEXT NOT NULL
) STRICT;
CREATE INDEX results_by_org ON results (org_id, ended_us DESC);

-- Every start of a gateway, and when its journal was known to be in this ledger whole (rule 15).
CREATE TABLE incarnations (
    id TEXT PRIMARY KEY,
    at TEXT NOT NULL
) STRICT;

CREATE TABLE incarnation_ends (
    id          TEXT PRIMARY KEY,
    last_number INTEGER NOT NULL CHECK (last_number >= 0),
    at          TEXT NOT NULL
) STRICT;

CREATE TABLE price_books (
    version TEXT PRIMARY KEY,
    markup  TEXT NOT NULL,
    at      TEXT NOT NULL
) STRICT;

CREATE TABLE prices (
    version       TEXT NOT NULL REFERENCES price_books (version),
    model         TEXT NOT NULL,
    variant       TEXT NOT NULL,
    usd_per_image TEXT NOT NULL,
    PRIMARY KEY (version, model, variant)
) STRICT;

-- The rate of a month is its last row; a month that has begun takes no further row.
CREATE TABLE fx_rates (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    month       TEXT NOT NULL,
    mxn_per_usd TEXT NOT NULL,
    source      TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT;
CREATE INDEX fx_rates_by_month ON fx_rates (month, id);

-- Append-only.
CREATE TRIGGER credit_transactions_stay BEFORE UPDATE ON credit_transactions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER credit_transactions_keep BEFORE DELETE ON credit_transactions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER events_keep BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER changes_stay BEFORE UPDATE ON changes BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER changes_keep BEFORE DELETE ON changes BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_books_stay BEFORE UPDATE ON price_books BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_books_keep BEFORE DELETE ON price_books BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER prices_stay BEFORE UPDATE ON prices BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER prices_keep BEFORE DELETE ON prices BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER fx_rates_stay BEFORE UPDATE ON fx_rates BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER fx_rates_keep BEFORE DELETE ON fx_rates BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnations_stay BEFORE UPDATE ON incarnations BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnations_keep BEFORE DELETE ON incarnations BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnation_ends_stay BEFORE UPDATE ON incarnation_ends BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnation_ends_keep BEFORE DELETE ON incarnation_ends BEGIN SELECT RAISE(ABORT, 'append-only'); END;

-- INSERT OR REPLACE deletes without a DELETE: where the row is there already, nothing is inserted. A rowid names one, too.
CREATE TRIGGER credit_transactions_once BEFORE INSERT ON credit_transactions
WHEN EXISTS (SELECT 1 FROM credit_transactions WHERE rowid = NEW.rowid)
    OR EXISTS (SELECT 1 FROM credit_transactions WHERE org_id = NEW.org_id AND number = NEW.number)
    OR EXISTS (
        SELECT 1 FROM credit_transactions WHERE NEW.type = 'consumption' AND id = NEW.id AND type = 'consumption'
    )
    OR EXISTS (
        SELECT 1 FROM credit_transactions WHERE NEW.type <> 'consumption' AND id = NEW.id AND type <> 'consumption'
    )
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER events_once BEFORE INSERT ON events
WHEN EXISTS (SELECT 1 FROM events WHERE event_id = NEW.event_id AND ("end" = 'charge') = (NEW."end" = 'charge'))
    OR EXISTS (SELECT 1 FROM events WHERE rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnations_once BEFORE INSERT ON incarnations
WHEN EXISTS (SELECT 1 FROM incarnations WHERE id = NEW.id OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER incarnation_ends_once BEFORE INSERT ON incarnation_ends
WHEN EXISTS (SELECT 1 FROM incarnation_ends WHERE id = NEW.id OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER changes_once BEFORE INSERT ON changes
WHEN EXISTS (SELECT 1 FROM changes WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_books_once BEFORE INSERT ON price_books
WHEN EXISTS (SELECT 1 FROM price_books WHERE version = NEW.version OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER prices_once BEFORE INSERT ON prices
WHEN EXISTS (
    SELECT 1 FROM prices
    WHERE (version, model, variant) = (NEW.version, NEW.model, NEW.variant) OR rowid = NEW.rowid
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER fx_rates_once BEFORE INSERT ON fx_rates
WHEN EXISTS (SELECT 1 FROM fx_rates WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
