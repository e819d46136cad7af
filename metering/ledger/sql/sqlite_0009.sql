-- What was found when the ledger was compared with the books of providers.

CREATE TABLE reconciliations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    month      TEXT NOT NULL,
    -- Absent where all were compared.
    provider   TEXT,
    ok         INTEGER NOT NULL CHECK (ok IN (0, 1)),
    -- Sums in USD: what the ledger expects, what the provider bills, and what of it is off.
    ledger_usd TEXT NOT NULL,
    billed_usd TEXT NOT NULL,
    off_usd    TEXT NOT NULL,
    findings   INTEGER NOT NULL CHECK (findings >= 0),
    report     TEXT NOT NULL,
    actor      TEXT NOT NULL,
    at         TEXT NOT NULL
) STRICT;
CREATE INDEX reconciliations_by_month ON reconciliations (month, id);
CREATE TRIGGER reconciliations_stay BEFORE UPDATE ON reconciliations BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER reconciliations_keep BEFORE DELETE ON reconciliations BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER reconciliations_once BEFORE INSERT ON reconciliations
WHEN EXISTS (SELECT 1 FROM reconciliations WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
