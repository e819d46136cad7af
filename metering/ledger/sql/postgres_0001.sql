-- The record. Money is integer micro-MXN, prices and rates are decimal text, times are ISO 8601 in UTC, days and
-- months are Mexico City's.

-- Text compares by byte, as in SQLite: a new version of the machine's locales must not reorder an index, for an index
-- that is out of order lets an event in twice.
CREATE DOMAIN bytewise AS TEXT COLLATE "C";

CREATE TABLE organizations (
    id                  bytewise PRIMARY KEY,
    name                bytewise NOT NULL UNIQUE,
    plan                bytewise NOT NULL,
    requests_per_minute BIGINT CHECK (requests_per_minute > 0),
    images_per_minute   BIGINT CHECK (images_per_minute > 0),
    created_at          bytewise NOT NULL
);

CREATE TABLE api_keys (
    id         bytewise PRIMARY KEY,
    org_id     bytewise NOT NULL REFERENCES organizations (id),
    name       bytewise NOT NULL,
    hash       bytewise NOT NULL UNIQUE,
    created_at bytewise NOT NULL,
    revoked_at bytewise
);
CREATE INDEX api_keys_by_org ON api_keys (org_id, created_at);

-- One row for each thing that Redis has to be told: what is projected, and up to where.
CREATE TABLE changes (
    seq    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org_id bytewise NOT NULL REFERENCES organizations (id),
    what   bytewise NOT NULL,
    at     bytewise NOT NULL
);
CREATE INDEX changes_by_org ON changes (org_id, seq);

-- A number is drawn before its row can be seen: without this a reader that follows the numbers could see 8, remember it,
-- and never see 7, which commits later. So before a transaction draws its first it waits until no other has drawn one
-- and is still open. The database gives the lock back after the commit can be seen, and thus whoever sees a number
-- sees every smaller one that there will ever be. The lock's own number is "ghub" in ASCII.
CREATE FUNCTION wait_for_turn() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1734899042);
    RETURN NULL;
END $$;
CREATE TRIGGER changes_in_order BEFORE INSERT ON changes FOR EACH STATEMENT EXECUTE FUNCTION wait_for_turn();
ALTER TABLE changes ENABLE ALWAYS TRIGGER changes_in_order;

-- balance = SUM(amount_micro_mxn). Credits are numbered per organisation; consumption is the consumer's, one per
-- charged event, and carries the event's id.
CREATE TABLE credit_transactions (
    id               bytewise NOT NULL,
    org_id           bytewise NOT NULL REFERENCES organizations (id),
    type             bytewise NOT NULL CHECK (type IN ('bonus', 'recharge', 'refund', 'adjustment', 'consumption')),
    number           BIGINT,
    amount_micro_mxn BIGINT NOT NULL CHECK (amount_micro_mxn <> 0),
    at               bytewise NOT NULL,
    CHECK ((type = 'consumption') = (number IS NULL)),
    CHECK (type = 'adjustment' OR (type = 'consumption') = (amount_micro_mxn < 0)),
    UNIQUE (org_id, number)
);
CREATE UNIQUE INDEX credits_by_id ON credit_transactions (id) WHERE type <> 'consumption';
CREATE UNIQUE INDEX consumption_by_event ON credit_transactions (id) WHERE type = 'consumption';

CREATE TABLE events (
    event_id         bytewise NOT NULL,
    org_id           bytewise NOT NULL,
    number           BIGINT NOT NULL,
    key_id           bytewise NOT NULL,
    model            bytewise NOT NULL,
    provider         bytewise NOT NULL,
    upstream         bytewise NOT NULL,
    size             bytewise NOT NULL,
    quality          bytewise,
    region           bytewise NOT NULL,
    day              bytewise NOT NULL,
    month            bytewise NOT NULL,
    images_asked     BIGINT NOT NULL CHECK (images_asked BETWEEN 1 AND 8),
    "end"            bytewise NOT NULL CHECK ("end" IN ('charge', 'void', 'expiry')),
    reason           bytewise NOT NULL,
    quantity         BIGINT NOT NULL CHECK (quantity BETWEEN 0 AND images_asked),
    variant          bytewise NOT NULL,
    usd_per_image    bytewise NOT NULL,
    price_book       bytewise NOT NULL,
    markup           bytewise NOT NULL,
    mxn_per_usd      bytewise NOT NULL,
    fx_month         bytewise NOT NULL,
    fx_source        bytewise NOT NULL,
    unit_micro_mxn   BIGINT NOT NULL CHECK (unit_micro_mxn > 0),
    usd_measured     bytewise,
    amount_micro_mxn BIGINT NOT NULL CHECK (amount_micro_mxn BETWEEN 0 AND quantity * unit_micro_mxn),
    admitted_us      BIGINT NOT NULL,
    ended_us         BIGINT NOT NULL,
    images           bytewise NOT NULL,
    booked_at        bytewise NOT NULL,
    once             bytewise,
    CHECK (("end" = 'charge') = (quantity > 0)),
    CHECK (usd_measured IS NOT NULL OR amount_micro_mxn = quantity * unit_micro_mxn)
);
-- An order's end, once; and its charge, once, for a journal may say that an order was answered whose hold had run out.
CREATE UNIQUE INDEX events_by_id ON events (event_id, ("end" = 'charge'));
CREATE INDEX events_by_org ON events (org_id, number) INCLUDE (amount_micro_mxn);
CREATE INDEX events_with_key ON events (org_id, ended_us) WHERE once IS NOT NULL;
CREATE INDEX events_by_month ON events (month, org_id, number);

-- How many events an organisation has and what they sum up to: derived, so that nobody has to read a whole history.
-- `ghub verify` recounts it; it is made anew by
--   DELETE FROM charged; INSERT INTO charged SELECT org_id, count(*), sum(amount_micro_mxn) FROM events GROUP BY org_id;
CREATE TABLE charged (
    org_id           bytewise PRIMARY KEY,
    events           BIGINT NOT NULL,
    amount_micro_mxn BIGINT NOT NULL
);
CREATE FUNCTION add_to_charged() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO charged AS total (org_id, events, amount_micro_mxn)
    SELECT org_id, count(*), sum(amount_micro_mxn) FROM booked GROUP BY org_id ORDER BY org_id
    ON CONFLICT (org_id) DO UPDATE SET
        events = total.events + excluded.events,
        amount_micro_mxn = total.amount_micro_mxn + excluded.amount_micro_mxn;
    RETURN NULL;
END $$;
CREATE TRIGGER events_are_summed AFTER INSERT ON events REFERENCING NEW TABLE AS booked
    FOR EACH STATEMENT EXECUTE FUNCTION add_to_charged();

-- What came over the stream and could not be booked, for a person to look at.
CREATE TABLE events_set_aside (
    partition BIGINT NOT NULL,
    entry_id  bytewise NOT NULL,
    error     bytewise NOT NULL,
    fields    BYTEA NOT NULL,
    at        bytewise NOT NULL,
    PRIMARY KEY (partition, entry_id)
);

-- What an order's owner may fetch again, beside its images. No record: old rows may be deleted.
CREATE TABLE results (
    request_id bytewise PRIMARY KEY,
    org_id     bytewise NOT NULL,
    ended_us   BIGINT NOT NULL,
    document   bytewise NOT NULL
);
CREATE INDEX results_by_org ON results (org_id, ended_us DESC);

-- Every start of a gateway, and when its journal was known to be in this ledger whole (rule 15).
CREATE TABLE incarnations (
    id bytewise PRIMARY KEY,
    at bytewise NOT NULL
);

CREATE TABLE incarnation_ends (
    id          bytewise PRIMARY KEY,
    last_number BIGINT NOT NULL CHECK (last_number >= 0),
    at          bytewise NOT NULL
);

CREATE TABLE price_books (
    version bytewise PRIMARY KEY,
    markup  bytewise NOT NULL,
    at      bytewise NOT NULL
);

CREATE TABLE prices (
    version       bytewise NOT NULL REFERENCES price_books (version),
    model         bytewise NOT NULL,
    variant       bytewise NOT NULL,
    usd_per_image bytewise NOT NULL,
    PRIMARY KEY (version, model, variant)
);

-- The rate of a month is its last row; a month that has begun takes no further row.
CREATE TABLE fx_rates (
    id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month       bytewise NOT NULL,
    mxn_per_usd bytewise NOT NULL,
    source      bytewise NOT NULL,
    at          bytewise NOT NULL
);
CREATE INDEX fx_rates_by_month ON fx_rates (month, id);

-- Append-only. ALWAYS: a session that calls itself a replica is refused, too.
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'append-only: no % on %', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;
DO $$
DECLARE kept name;
BEGIN
    FOREACH kept IN ARRAY ARRAY[
        'credit_transactions', 'events', 'changes', 'price_books', 'prices', 'fx_rates', 'incarnations', 'incarnation_ends'
    ] LOOP
        EXECUTE format(
            'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I'
            ' FOR EACH STATEMENT EXECUTE FUNCTION refuse()',
            kept
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER append_only', kept);
    END LOOP;
END $$;
