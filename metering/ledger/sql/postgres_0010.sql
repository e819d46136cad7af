-- Adjustments that one person proposes and another approves; and which right each person used of a month.

ALTER TABLE credit_transactions
    ADD CONSTRAINT corrections_are_adjustments CHECK (corrects IS NULL OR type = 'adjustment') NOT VALID;
CREATE INDEX corrections ON credit_transactions (org_id, corrects) WHERE corrects IS NOT NULL;

CREATE TABLE adjustments_proposed (
    id               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id           bytewise NOT NULL REFERENCES organizations (id),
    amount_micro_mxn BIGINT NOT NULL CHECK (amount_micro_mxn <> 0),
    reason           bytewise NOT NULL,
    corrects         bytewise,
    proposed_by      bytewise NOT NULL,
    at               bytewise NOT NULL
);
-- The credit is written in the same transaction.
CREATE TABLE adjustment_approvals (
    proposal_id BIGINT PRIMARY KEY REFERENCES adjustments_proposed (id),
    credit_id   bytewise NOT NULL UNIQUE,
    approved_by bytewise NOT NULL,
    at          bytewise NOT NULL
);

-- Of one month, one person uses one right: the first row stays, and there is no second.
CREATE TABLE month_rights (
    month       bytewise NOT NULL,
    actor       bytewise NOT NULL,
    month_right bytewise NOT NULL CHECK (month_right IN ('enter', 'approve_fx', 'approve_adjustment', 'close')),
    at          bytewise NOT NULL,
    PRIMARY KEY (month, actor)
);

DO $$
DECLARE kept name;
BEGIN
    FOREACH kept IN ARRAY ARRAY['adjustments_proposed', 'adjustment_approvals', 'month_rights'] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse()',
            kept
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', kept);
    END LOOP;
END $$;
