-- Webhooks: whom an organisation's events are sent to, what they are signed with, and what was not delivered yet.

-- `long` for an order that was answered at once (rule 5).
ALTER TABLE events ADD COLUMN mode TEXT;

CREATE TABLE webhooks (
    id          TEXT PRIMARY KEY,
    org_id      TEXT NOT NULL REFERENCES organizations (id),
    url         TEXT NOT NULL,
    -- Types of events, a JSON list.
    events      TEXT NOT NULL,
    created_at  TEXT NOT NULL,
    disabled_at TEXT
) STRICT;
CREATE UNIQUE INDEX webhooks_by_url ON webhooks (org_id, url) WHERE disabled_at IS NULL;

-- An organisation's secrets, encrypted with GHUB_SECRETS_KEY. The one before signs too, until it expires.
CREATE TABLE webhook_secrets (
    org_id     TEXT NOT NULL REFERENCES organizations (id),
    created_at TEXT NOT NULL,
    secret     TEXT NOT NULL,
    expires_at TEXT,
    PRIMARY KEY (org_id, created_at)
) STRICT;

-- A row for each event and address, written in the transaction that books what the event tells (rule 36). No record:
-- rows are deleted some weeks after their end.
CREATE TABLE webhook_deliveries (
    id         TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL,
    -- Absent for the address that an order named itself.
    webhook_id TEXT,
    url        TEXT NOT NULL,
    -- The URL's host and port: a server that fails delays no other.
    server     TEXT NOT NULL,
    type       TEXT NOT NULL,
    -- What the event is about. Of the same type, nothing is told twice.
    subject    TEXT NOT NULL,
    body       TEXT NOT NULL,
    at         TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'set_aside')),
    -- Since when it is tried: its beginning, or when it was replayed.
    since      TEXT NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    -- Nobody sends it before: it is being sent, or waits after a failure.
    next_at    TEXT NOT NULL,
    error      TEXT,
    ended_at   TEXT
) STRICT;
CREATE UNIQUE INDEX webhook_deliveries_once ON webhook_deliveries (org_id, type, subject, url);
CREATE INDEX webhook_deliveries_by_turn ON webhook_deliveries (next_at) WHERE state = 'waiting';
CREATE INDEX webhook_deliveries_by_end ON webhook_deliveries (state, ended_at) WHERE state <> 'waiting';
CREATE INDEX webhook_deliveries_by_time ON webhook_deliveries (org_id, at, id);
CREATE INDEX webhook_deliveries_of ON webhook_deliveries (webhook_id, state);
