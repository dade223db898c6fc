-- Removes a subscription; whether there was one.
CREATE OR REPLACE FUNCTION rowcast.forget(name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  DELETE FROM rowcast.subscription s WHERE s.name = forget.name;
  RETURN FOUND;
END
$$
