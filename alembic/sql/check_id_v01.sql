-- One clear line for an id that nobody can have; see rowcast.follower().
CREATE OR REPLACE FUNCTION rowcast.check_id(id text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $$
BEGIN
  IF rowcast.follower(jsonb_build_object('id', id), 'id') IS NULL THEN
    RAISE EXCEPTION 'id % is no good: 1 to 128 characters without control characters', coalesce(quote_literal(left(id, 150)), 'null')
      USING ERRCODE = '22023';
  END IF;
END
$$
