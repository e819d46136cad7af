-- Where a rate comes from, who entered it, and who approved it. Rates that are there were in force, so they are approved.

ALTER TABLE fx_rates
    ADD COLUMN series bytewise,
    ADD COLUMN method bytewise,
    -- The value as its source printed it.
    ADD COLUMN printed bytewise,
    ADD COLUMN fetched_at bytewise,
    ADD COLUMN raw_sha256 bytewise,
    ADD COLUMN entered_by bytewise;

CREATE TABLE fx_approvals (
    rate_id     BIGINT PRIMARY KEY REFERENCES fx_rates (id),
    approved_by bytewise NOT NULL,
    at          bytewise NOT NULL
);
INSERT INTO fx_approvals SELECT id, 'ledger schema 6', at FROM fx_rates;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON fx_approvals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE fx_approvals ENABLE ALWAYS TRIGGER append_only;
