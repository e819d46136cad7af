-- Refunds that name their order; what was set aside and fed again; journals that were given up.

ALTER TABLE credit_transactions ADD COLUMN order_id TEXT;
-- Why it was given, in the words of whoever gave it.
ALTER TABLE credit_transactions ADD COLUMN reason TEXT;
CREATE INDEX refunds_by_order ON credit_transactions (order_id) WHERE order_id IS NOT NULL;

-- All refunds of an order together are at most what it was charged (rule 33).
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

-- Whose event it is, as far as it can be read: its order waits for nobody else, and nobody waits for it (rule 30).
ALTER TABLE events_set_aside ADD COLUMN request_id TEXT;
ALTER TABLE events_set_aside ADD COLUMN org_id TEXT;
CREATE INDEX set_aside_by_request ON events_set_aside (request_id) WHERE request_id IS NOT NULL;

-- An entry that was fed to the stream again: where it is refused once more, it is set aside under a new entry's id.
CREATE TABLE set_aside_ends (
    partition INTEGER NOT NULL,
    entry_id  TEXT NOT NULL,
    at        TEXT NOT NULL,
    PRIMARY KEY (partition, entry_id)
) STRICT;
CREATE TRIGGER set_aside_ends_stay BEFORE UPDATE ON set_aside_ends BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER set_aside_ends_keep BEFORE DELETE ON set_aside_ends BEGIN SELECT RAISE(ABORT, 'append-only'); END;

-- Why a journal was closed although it is lost; absent where the ledger has all that it says.
ALTER TABLE incarnation_ends ADD COLUMN lost_reason TEXT;
