-- Raises an error from within a statement: BEGIN ATOMIC has no RAISE. Its type lets it stand where a condition does.
CREATE OR REPLACE FUNCTION rowcast.refuse(code text, why text) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  RAISE EXCEPTION USING ERRCODE = code, MESSAGE = why;
END
$$
