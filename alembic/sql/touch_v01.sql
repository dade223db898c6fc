-- Keeps updated_at, for BEFORE UPDATE triggers.
CREATE OR REPLACE FUNCTION rowcast.touch() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
  NEW.updated_at := pg_catalog.now();
  RETURN NEW;
END
$$
