-- What is sent to others (rule 36): each sink, and what it has not taken yet.

-- A consumer registers those of its settings when it starts; what is booked from then on is for them.
CREATE TABLE sinks (
    name         bytewise PRIMARY KEY,
    profile      bytewise NOT NULL,
    since        bytewise NOT NULL,
    -- When it last took something, and why it last took nothing.
    delivered_at bytewise,
    error        bytewise
);

-- A row for each sink and item, written in the transaction that books the item. A cursor over numbers would be less to
-- write, and would skip items: in PostgreSQL a number can be drawn before another and be committed after it. No record:
-- what was delivered is deleted, and `ghub sink replay NAME --from DAY --to DAY` writes it again from the record.
-- Without a reference to `sinks`: its check would lock the sink's row for each item.
CREATE TABLE outbox (
    sink         bytewise NOT NULL,
    -- An event's or a credit's.
    id           bytewise NOT NULL,
    kind         bytewise NOT NULL CHECK (kind IN ('charge', 'refund')),
    -- A refund waits until its order's charge is no longer to be sent.
    order_id     bytewise,
    at           bytewise NOT NULL,
    attempts     BIGINT NOT NULL DEFAULT 0,
    -- Nobody sends it before: it is being sent, or waits after a failure.
    next_at      bytewise NOT NULL,
    set_aside_at bytewise,
    error        bytewise,
    PRIMARY KEY (sink, id, kind)
);
CREATE INDEX outbox_by_turn ON outbox (sink, next_at, at) WHERE set_aside_at IS NULL;
CREATE INDEX outbox_set_aside ON outbox (sink, set_aside_at) WHERE set_aside_at IS NOT NULL;

CREATE FUNCTION add_charges_to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM sinks) THEN
        RETURN NULL;
    END IF;
    INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
    SELECT s.name, b.event_id, 'charge', b.event_id, b.booked_at, b.booked_at
    FROM sinks AS s CROSS JOIN booked AS b WHERE b."end" = 'charge' ORDER BY s.name, b.event_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER events_go_out AFTER INSERT ON events REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION add_charges_to_outbox();

CREATE FUNCTION add_refund_to_outbox() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO outbox (sink, id, kind, order_id, at, next_at)
    SELECT name, NEW.id, 'refund', NEW.order_id, NEW.at, NEW.at FROM sinks ORDER BY name
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER refunds_go_out AFTER INSERT ON credit_transactions
    FOR EACH ROW WHEN (NEW.type = 'refund') EXECUTE FUNCTION add_refund_to_outbox();
