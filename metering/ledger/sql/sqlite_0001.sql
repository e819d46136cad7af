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
    event_id         TEXT PRIMARY KEY,
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
    CHECK (("end" = 'charge') = (quantity > 0)),
    CHECK (usd_measured IS NOT NULL OR amount_micro_mxn = quantity * unit_micro_mxn)
) STRICT;
CREATE INDEX events_by_org ON events (org_id, number);
CREATE INDEX events_by_month ON events (month, org_id, number);

-- What came over the stream and could not be booked, for a person to look at.
CREATE TABLE events_set_aside (
    partition INTEGER NOT NULL,
    entry_id  TEXT NOT NULL,
    error     TEXT NOT NULL,
    fields    BLOB NOT NULL,
    at        TEXT NOT NULL,
    PRIMARY KEY (partition, entry_id)
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
