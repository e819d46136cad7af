-- Refunds that name their order; what was set aside and fed again; journals that were given up.

ALTER TABLE credit_transactions ADD COLUMN order_id bytewise;
-- Why it was given, in the words of whoever gave it.
ALTER TABLE credit_transactions ADD COLUMN reason bytewise;
CREATE INDEX refunds_by_order ON credit_transactions (order_id) WHERE order_id IS NOT NULL;

-- All refunds of an order together are at most what it was charged (rule 33). Two at once: whoever adds a credit holds
-- the lock of `wait_for_turn`, for a credit is a change.
CREATE FUNCTION bound_refunds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1734899042);
    IF NEW.order_id IS NULL OR NEW.amount_micro_mxn
        + (SELECT coalesce(sum(amount_micro_mxn), 0) FROM credit_transactions WHERE order_id = NEW.order_id)
        > (
            SELECT coalesce(sum(amount_micro_mxn), 0) FROM events
            WHERE event_id = NEW.order_id AND org_id = NEW.org_id AND "end" = 'charge'
        )
    THEN
        RAISE EXCEPTION 'a refund is above what its order was charged' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refunds_are_bounded BEFORE INSERT ON credit_transactions
    FOR EACH ROW WHEN (NEW.type = 'refund') EXECUTE FUNCTION bound_refunds();
ALTER TABLE credit_transactions ENABLE ALWAYS TRIGGER refunds_are_bounded;

-- Whose event it is, as far as it can be read: its order waits for nobody else, and nobody waits for it (rule 30).
ALTER TABLE events_set_aside ADD COLUMN request_id bytewise;
ALTER TABLE events_set_aside ADD COLUMN org_id bytewise;
CREATE INDEX set_aside_by_request ON events_set_aside (request_id) WHERE request_id IS NOT NULL;

-- An entry that was fed to the stream again: where it is refused once more, it is set aside under a new entry's id.
CREATE TABLE set_aside_ends (
    partition BIGINT NOT NULL,
    entry_id  bytewise NOT NULL,
    at        bytewise NOT NULL,
    PRIMARY KEY (partition, entry_id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON set_aside_ends
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
ALTER TABLE set_aside_ends ENABLE ALWAYS TRIGGER append_only;

-- Why a journal was closed although it is lost; absent where the ledger has all that it says.
ALTER TABLE incarnation_ends ADD COLUMN lost_reason bytewise;
