-- From when on each price holds. A list is a file of models as a gateway took it, and has rows for the prices that it
-- changed or added: `version` holds from `from_us` on, and `version_before` until then. The last row of a price is right.

CREATE TABLE price_lists (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    version      TEXT NOT NULL REFERENCES price_books (version),
    effective_us INTEGER NOT NULL CHECK (effective_us >= 0),
    at_us        INTEGER NOT NULL CHECK (at_us > 0),
    at           TEXT NOT NULL
) STRICT;
CREATE INDEX price_lists_by_version ON price_lists (version, effective_us);

CREATE TABLE price_schedules (
    number         INTEGER NOT NULL REFERENCES price_lists (number),
    model          TEXT NOT NULL,
    variant        TEXT NOT NULL,
    version        TEXT NOT NULL,
    from_us        INTEGER NOT NULL CHECK (from_us >= 0),
    version_before TEXT,
    PRIMARY KEY (number, model, variant),
    FOREIGN KEY (version, model, variant) REFERENCES prices (version, model, variant),
    FOREIGN KEY (version_before, model, variant) REFERENCES prices (version, model, variant)
) STRICT;

CREATE TRIGGER price_lists_stay BEFORE UPDATE ON price_lists BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_lists_keep BEFORE DELETE ON price_lists BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_lists_once BEFORE INSERT ON price_lists
WHEN EXISTS (SELECT 1 FROM price_lists WHERE number = NEW.number)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_schedules_stay BEFORE UPDATE ON price_schedules BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_schedules_keep BEFORE DELETE ON price_schedules BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER price_schedules_once BEFORE INSERT ON price_schedules
WHEN EXISTS (
    SELECT 1 FROM price_schedules
    WHERE (number, model, variant) = (NEW.number, NEW.model, NEW.variant) OR rowid = NEW.rowid
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
