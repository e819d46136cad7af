-- Keys with an end, models and limits of their own; quotas; plans; who did what; what customers used, and are told.

ALTER TABLE organizations ADD COLUMN in_flight INTEGER CHECK (in_flight >= 0);
ALTER TABLE organizations ADD COLUMN images_per_day INTEGER CHECK (images_per_day >= 0);
ALTER TABLE organizations ADD COLUMN images_per_month INTEGER CHECK (images_per_month >= 0);
ALTER TABLE organizations ADD COLUMN micro_mxn_per_month INTEGER CHECK (micro_mxn_per_month >= 0);

ALTER TABLE api_keys ADD COLUMN expires_at TEXT;
-- Between spaces; empty for all.
ALTER TABLE api_keys ADD COLUMN models TEXT NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
ALTER TABLE api_keys ADD COLUMN images_per_minute INTEGER CHECK (images_per_minute > 0);
ALTER TABLE api_keys ADD COLUMN in_flight INTEGER CHECK (in_flight > 0);
ALTER TABLE api_keys ADD COLUMN images_per_day INTEGER CHECK (images_per_day > 0);
ALTER TABLE api_keys ADD COLUMN images_per_month INTEGER CHECK (images_per_month > 0);
ALTER TABLE api_keys ADD COLUMN micro_mxn_per_month INTEGER CHECK (micro_mxn_per_month > 0);

-- The plans of the file that a gateway read last, so that every process projects the same.
CREATE TABLE plans (
    name                TEXT PRIMARY KEY,
    requests_per_minute INTEGER NOT NULL CHECK (requests_per_minute > 0),
    images_per_minute   INTEGER NOT NULL CHECK (images_per_minute > 0),
    in_flight           INTEGER CHECK (in_flight > 0),
    images_per_day      INTEGER CHECK (images_per_day > 0),
    images_per_month    INTEGER CHECK (images_per_month > 0),
    micro_mxn_per_month INTEGER CHECK (micro_mxn_per_month > 0),
    at                  TEXT NOT NULL
) STRICT;

-- Who did what to which organisation. Never a key.
CREATE TABLE audit (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      TEXT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    org_id  TEXT,
    target  TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_org ON audit (org_id, id);
CREATE TRIGGER audit_stay BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER audit_keep BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER audit_once BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;

-- Writes by idempotency key: what was asked, and what it was done to. No record: old rows may be deleted.
CREATE TABLE writes (
    actor       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    target      TEXT NOT NULL,
    at          TEXT NOT NULL,
    PRIMARY KEY (actor, key)
) STRICT;

-- What was charged, by day, model and key: derived, so that nobody has to read a whole history. It is made anew by
--   DELETE FROM usage; and the statement at its end.
CREATE TABLE usage (
    org_id           TEXT NOT NULL,
    day              TEXT NOT NULL,
    key_id           TEXT NOT NULL,
    model            TEXT NOT NULL,
    orders           INTEGER NOT NULL,
    images           INTEGER NOT NULL,
    amount_micro_mxn INTEGER NOT NULL,
    last_us          INTEGER NOT NULL,
    PRIMARY KEY (org_id, day, key_id, model)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER events_are_used AFTER INSERT ON events WHEN NEW."end" = 'charge' BEGIN
    INSERT INTO usage VALUES (
        NEW.org_id, NEW.day, NEW.key_id, NEW.model, 1, NEW.quantity, NEW.amount_micro_mxn, NEW.admitted_us
    )
    ON CONFLICT (org_id, day, key_id, model) DO UPDATE SET
        orders = orders + 1,
        images = images + excluded.images,
        amount_micro_mxn = amount_micro_mxn + excluded.amount_micro_mxn,
        last_us = max(last_us, excluded.last_us);
END;
INSERT INTO usage
SELECT org_id, day, key_id, model, count(*), sum(quantity), sum(amount_micro_mxn), max(admitted_us)
FROM events WHERE "end" = 'charge' GROUP BY org_id, day, key_id, model;

-- What organisations are told: a quota that is nearly used, a balance that is low. Once for each threshold and period.
CREATE TABLE notices (
    org_id     TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    what       TEXT NOT NULL,
    percent    INTEGER NOT NULL,
    period     TEXT NOT NULL,
    limited_to INTEGER NOT NULL,
    used       INTEGER NOT NULL,
    at         TEXT NOT NULL,
    PRIMARY KEY (org_id, key_id, what, percent, period)
) STRICT;
CREATE INDEX notices_by_time ON notices (org_id, at);
CREATE TRIGGER notices_stay BEFORE UPDATE ON notices BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER notices_keep BEFORE DELETE ON notices BEGIN SELECT RAISE(ABORT, 'append-only'); END;
