-- Credits that say who gave them, what they are for the tax office, and what they left; recharges that a bank took back.

ALTER TABLE credit_transactions
    -- Who gave it; absent in rows of earlier versions, as what follows.
    ADD COLUMN actor bytewise,
    -- The recharge that a chargeback takes back.
    ADD COLUMN recharge_id bytewise,
    -- What was paid for it: multiples of 0.01 MXN. Bonuses, refunds and adjustments have none.
    ADD COLUMN base_micro_mxn BIGINT,
    ADD COLUMN iva_rate bytewise,
    ADD COLUMN iva_micro_mxn BIGINT,
    -- Credits less charges, as this record had them, after it.
    ADD COLUMN balance_micro_mxn BIGINT,
    DROP CONSTRAINT credit_transactions_type_check,
    DROP CONSTRAINT credit_transactions_check1;
-- Not the rows that are there, of which each has passed the narrower checks: this takes no time.
ALTER TABLE credit_transactions
    ADD CONSTRAINT credit_types
        CHECK (type IN ('bonus', 'recharge', 'refund', 'adjustment', 'chargeback', 'consumption')) NOT VALID,
    ADD CONSTRAINT credit_signs
        CHECK (type = 'adjustment' OR (type IN ('consumption', 'chargeback')) = (amount_micro_mxn < 0)) NOT VALID,
    ADD CONSTRAINT credit_taxes CHECK (
        (base_micro_mxn IS NULL) = (iva_rate IS NULL) AND (base_micro_mxn IS NULL) = (iva_micro_mxn IS NULL)
        AND (base_micro_mxn IS NULL OR type IN ('recharge', 'chargeback'))
        AND base_micro_mxn % 10000 = 0 AND iva_micro_mxn % 10000 = 0
    ) NOT VALID,
    ADD CONSTRAINT chargebacks_alone CHECK ((recharge_id IS NULL) = (type <> 'chargeback')) NOT VALID;

CREATE INDEX credits_by_time ON credit_transactions (at, org_id, number) WHERE number IS NOT NULL;
CREATE INDEX chargebacks_by_recharge ON credit_transactions (recharge_id) WHERE recharge_id IS NOT NULL;

-- What a tax document says of a credit (RFC, form of payment, the CFDI's UUID), known later than the credit itself. The
-- last row of each name holds.
CREATE TABLE credit_facts (
    id        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    credit_id bytewise NOT NULL,
    name      bytewise NOT NULL,
    value     bytewise NOT NULL,
    at        bytewise NOT NULL
);
CREATE INDEX facts_by_credit ON credit_facts (credit_id, name, id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credit_facts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE credit_facts ENABLE ALWAYS TRIGGER append_only;
