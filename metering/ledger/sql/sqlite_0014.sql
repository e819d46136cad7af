-- The second route of a model, if an order went by that: its provider, the name there, and its list price per image.
ALTER TABLE events ADD COLUMN route_provider TEXT;
ALTER TABLE events ADD COLUMN route_upstream TEXT;
ALTER TABLE events ADD COLUMN route_usd_per_image TEXT;
