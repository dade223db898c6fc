-- The uuid that a topic's id is, as PostgreSQL writes it; null for any other text, which no row of ours has.
CREATE OR REPLACE FUNCTION rowcast.as_uuid(id text) RETURNS uuid
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN id::uuid END
$$
