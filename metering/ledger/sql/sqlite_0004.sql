-- Organisations that are suspended: their orders are refused, and what they may read they still may.

ALTER TABLE organizations ADD COLUMN suspended_at TEXT;
