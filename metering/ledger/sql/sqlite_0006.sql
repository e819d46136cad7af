-- Where a rate comes from, who entered it, and who approved it. Rates that are there were in force, so they are approved.

ALTER TABLE fx_rates ADD COLUMN series TEXT;
ALTER TABLE fx_rates ADD COLUMN method TEXT;
-- The value as its source printed it.
ALTER TABLE fx_rates ADD COLUMN printed TEXT;
ALTER TABLE fx_rates ADD COLUMN fetched_at TEXT;
ALTER TABLE fx_rates ADD COLUMN raw_sha256 TEXT;
ALTER TABLE fx_rates ADD COLUMN entered_by TEXT;

CREATE TABLE fx_approvals (
    rate_id     INTEGER PRIMARY KEY REFERENCES fx_rates (id),
    approved_by TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT;
INSERT INTO fx_approvals SELECT id, 'ledger schema 6', at FROM fx_rates;
CREATE TRIGGER fx_approvals_stay BEFORE UPDATE ON fx_approvals BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER fx_approvals_keep BEFORE DELETE ON fx_approvals BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER fx_approvals_once BEFORE INSERT ON fx_approvals
WHEN EXISTS (SELECT 1 FROM fx_approvals WHERE rate_id = NEW.rate_id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
