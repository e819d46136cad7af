-- What is sent to others (rule 36): each sink, and what it has not taken yet.

-- A consumer registers those of its settings when it starts; what is booked from then on is for them.
CREATE TABLE sinks (
    name         TEXT PRIMARY KEY,
    profile      TEXT NOT NULL,
    since        TEXT NOT NULL,
    -- When it last took something, and why it last took nothing.
    delivered_at TEXT,
    error        TEXT
) STRICT;

-- A row for each sink and item, written in the transaction that books the item. A cursor over numbers would be less to
-- write, and would skip items: in PostgreSQL a number can be drawn before another and be committed after it. No record:
-- what was delivered is deleted, and `ghub sink replay NAME --from DAY --to DAY` writes it again from the record.
CREATE TABLE outbox (
    sink         TEXT NOT NULL,
    -- An event's or a credit's.
    id           TEXT NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('charge', 'refund')),
    -- A refund waits until its order's charge is no longer to be sent.
    order_id     TEXT,
    at           TEXT NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    -- Nobody sends it before: it is being sent, or waits after a failure.
    next_at      TEXT NOT NULL,
    set_aside_at TEXT,
    error        TEXT,
    PRIMARY KEY (sink, id, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX outbox_by_turn ON outbox (sink, next_at, at) WHERE set_aside_at IS NULL;
CREATE INDEX outbox_set_aside ON outbox (sink, set_aside_at) WHERE set_aside_at IS NOT NULL;

CREATE TRIGGER events_go_out AFTER INSERT ON events WHEN NEW."end" = 'charge' BEGIN
    INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
    SELECT name, NEW.event_id, 'charge', NEW.event_id, NEW.booked_at, NEW.booked_at FROM sinks WHERE true
    ON CONFLICT DO NOTHING;
END;
CREATE TRIGGER refunds_go_out AFTER INSERT ON credit_transactions WHEN NEW.type = 'refund' BEGIN
    INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
    SELECT name, NEW.id, 'refund', NEW.order_id, NEW.at, NEW.at FROM sinks WHERE true
    ON CONFLICT DO NOTHING;
END;
