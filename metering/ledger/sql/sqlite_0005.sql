-- Credits that say who gave them, what they are for the tax office, and what they left; recharges that a bank took back.
-- Their table is made anew, because a check cannot be changed.

CREATE TABLE credits_anew (
    id                TEXT NOT NULL,
    org_id            TEXT NOT NULL REFERENCES organizations (id),
    type              TEXT NOT NULL
        CHECK (type IN ('bonus', 'recharge', 'refund', 'adjustment', 'chargeback', 'consumption')),
    number            INTEGER,
    amount_micro_mxn  INTEGER NOT NULL CHECK (amount_micro_mxn <> 0),
    at                TEXT NOT NULL,
    order_id          TEXT,
    reason            TEXT,
    -- Who gave it; absent in rows of earlier versions, as what follows.
    actor             TEXT,
    -- The recharge that a chargeback takes back.
    recharge_id       TEXT,
    -- What was paid for it: multiples of 0.01 MXN. Bonuses, refunds and adjustments have none.
    base_micro_mxn    INTEGER,
    iva_rate          TEXT,
    iva_micro_mxn     INTEGER,
    -- Credits less charges, as this record had them, after it.
    balance_micro_mxn INTEGER,
    CHECK ((type = 'consumption') = (number IS NULL)),
    CHECK (type = 'adjustment' OR (type IN ('consumption', 'chargeback')) = (amount_micro_mxn < 0)),
    CHECK ((base_micro_mxn IS NULL) = (iva_rate IS NULL) AND (base_micro_mxn IS NULL) = (iva_micro_mxn IS NULL)),
    CHECK (base_micro_mxn IS NULL OR type IN ('recharge', 'chargeback')),
    CHECK (base_micro_mxn % 10000 = 0 AND iva_micro_mxn % 10000 = 0),
    CHECK ((recharge_id IS NULL) = (type <> 'chargeback')),
    UNIQUE (org_id, number)
) STRICT;
INSERT INTO credits_anew (id, org_id, type, number, amount_micro_mxn, at, order_id, reason)
SELECT id, org_id, type, number, amount_micro_mxn, at, order_id, reason FROM credit_transactions ORDER BY rowid;
DROP TABLE credit_transactions;
ALTER TABLE credits_anew RENAME TO credit_transactions;

CREATE UNIQUE INDEX credits_by_id ON credit_transactions (id) WHERE type <> 'consumption';
CREATE UNIQUE INDEX consumption_by_event ON credit_transactions (id) WHERE type = 'consumption';
CREATE INDEX refunds_by_order ON credit_transactions (order_id) WHERE order_id IS NOT NULL;
CREATE INDEX credits_by_time ON credit_transactions (at, org_id, number) WHERE number IS NOT NULL;
CREATE INDEX chargebacks_by_recharge ON credit_transactions (recharge_id) WHERE recharge_id IS NOT NULL;

CREATE TRIGGER credit_transactions_stay BEFORE UPDATE ON credit_transactions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER credit_transactions_keep BEFORE DELETE ON credit_transactions BEGIN SELECT RAISE(ABORT, 'append-only'); END;
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
CREATE TRIGGER refunds_are_bounded BEFORE INSERT ON credit_transactions
WHEN NEW.type = 'refund' AND (
    NEW.order_id IS NULL
    OR NEW.amount_micro_mxn
        + (SELECT coalesce(sum(amount_micro_mxn), 0) FROM credit_transactions WHERE order_id = NEW.order_id)
        > (
            SELECT coalesce(sum(amount_micro_mxn), 0) FROM events
            WHERE event_id = NEW.order_id AND org_id = NEW.org_id AND "end" = 'charge'
        )
)
BEGIN SELECT RAISE(ABORT, 'a refund is above what its order was charged'); END;

-- What a tax document says of a credit (RFC, form of payment, the CFDI's UUID), known later than the credit itself. The
-- last row of each name holds.
CREATE TABLE credit_facts (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    credit_id TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     TEXT NOT NULL,
    at        TEXT NOT NULL
) STRICT;
CREATE INDEX facts_by_credit ON credit_facts (credit_id, name, id);
CREATE TRIGGER credit_facts_stay BEFORE UPDATE ON credit_facts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER credit_facts_keep BEFORE DELETE ON credit_facts BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER credit_facts_once BEFORE INSERT ON credit_facts
WHEN EXISTS (SELECT 1 FROM credit_facts WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'append-only'); END;
