-- What a key may read, how it is answered, from which pages it may be used, and which key it was rotated from. Keys that
-- are there read all of their organisation's orders, as they did.

-- What one key was charged, the latest first, however much its organisation ordered beside it. First, for it takes
-- longest, and keys are locked from the next statement on.
CREATE INDEX charges_by_key ON events (org_id, key_id, ended_us) WHERE "end" = 'charge';

ALTER TABLE api_keys ADD COLUMN read bytewise NOT NULL DEFAULT 'org' CHECK (read IN ('org', 'own'));
ALTER TABLE api_keys ADD COLUMN response_format bytewise NOT NULL DEFAULT 'url'
    CHECK (response_format IN ('url', 'b64_json'));
-- Between spaces; empty for no page.
ALTER TABLE api_keys ADD COLUMN origins bytewise NOT NULL DEFAULT '';
ALTER TABLE api_keys ADD COLUMN replaces bytewise REFERENCES api_keys (id);

-- The few that browsers may use are looked for every few seconds, among all that there are.
CREATE INDEX api_keys_with_origins ON api_keys (origins) WHERE origins <> '';

-- Organisations that are suspended: their orders are refused, and what they may read they still may.

ALTER TABLE organizations ADD COLUMN suspended_at bytewise;
