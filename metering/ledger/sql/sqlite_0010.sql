-- Adjustments that one person proposes and another approves; and which right each person used of a month.

CREATE TRIGGER corrections_are_adjustments BEFORE INSERT ON credit_transactions
WHEN NEW.corrects IS NOT NULL AND NEW.type <> 'adjustment'
BEGIN SELECT RAISE(ABORT, 'only an adjustment corrects'); END;
CREATE INDEX corrections ON credit_transactions (org_id, corrects) WHERE corrects IS NOT NULL;

CREATE TABLE adjustments_proposed (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id           TEXT NOT NULL REFERENCES organizations (id),
    amount_micro_mxn INTEGER NOT NULL CHECK (amount_micro_mxn <> 0),
    reason           TEXT NOT NULL,
    corrects         TEXT,
    proposed_by      TEXT NOT NULL,
    at               TEXT NOT NULL
) STRICT;
-- The credit is written in the same transaction.
CREATE TABLE adjustment_approvals (
    proposal_id INTEGER PRIMARY KEY REFERENCES adjustments_proposed (id),
    credit_id   TEXT NOT NULL UNIQUE,
    approved_by TEXT NOT NULL,
    at          TEXT NOT NULL
) STRICT;

-- Of one month, one person uses one right: the first row stays, and there is no second.
CREATE TABLE month_rights (
    month       TEXT NOT NULL,
    actor       TEXT NOT NULL,
    month_right TEXT NOT NULL CHECK (month_right IN ('enter', 'approve_fx', 'approve_adjustment', 'close')),
    at          TEXT NOT NULL,
    PRIMARY KEY (month, actor)
) STRICT;

CREATE TRIGGER adjustments_proposed_stay BEFORE UPDATE ON adjustments_proposed
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER adjustments_proposed_keep BEFORE DELETE ON adjustments_proposed
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER adjustments_proposed_once BEFORE INSERT ON adjustments_proposed
WHEN EXISTS (SELECT 1 FROM adjustments_proposed WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER adjustment_approvals_stay BEFORE UPDATE ON adjustment_approvals
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER adjustment_approvals_keep BEFORE DELETE ON adjustment_approvals
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER adjustment_approvals_once BEFORE INSERT ON adjustment_approvals
WHEN EXISTS (
    SELECT 1 FROM adjustment_approvals WHERE proposal_id = NEW.proposal_id OR credit_id = NEW.credit_id
)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_rights_stay BEFORE UPDATE ON month_rights BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_rights_keep BEFORE DELETE ON month_rights BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER month_rights_once BEFORE INSERT ON month_rights
WHEN EXISTS (SELECT 1 FROM month_rights WHERE (month, actor) = (NEW.month, NEW.actor) OR rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
