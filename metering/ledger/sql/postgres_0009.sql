-- What was found when the ledger was compared with the books of providers.

CREATE TABLE reconciliations (
    id         BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month      bytewise NOT NULL,
    -- Absent where all were compared.
    provider   bytewise,
    ok         BOOLEAN NOT NULL,
    -- Sums in USD: what the ledger expects, what the provider bills, and what of it is off.
    ledger_usd bytewise NOT NULL,
    billed_usd bytewise NOT NULL,
    off_usd    bytewise NOT NULL,
    findings   BIGINT NOT NULL CHECK (findings >= 0),
    report     bytewise NOT NULL,
    actor      bytewise NOT NULL,
    at         bytewise NOT NULL
);
CREATE INDEX reconciliations_by_month ON reconciliations (month, id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON reconciliations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE reconciliations ENABLE ALWAYS TRIGGER append_only;
