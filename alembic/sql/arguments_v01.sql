-- A trigger's arguments: pg_trigger holds them one after the other, each with a zero byte behind it. Null for what is not
-- as rowcast.watch() writes it: nine of them, the last three arrays.
CREATE OR REPLACE FUNCTION rowcast.arguments(tgargs bytea) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  found text[] := '{}';
  start integer := 1;
BEGIN
  FOR i IN 1 .. length(tgargs) LOOP
    IF get_byte(tgargs, i - 1) = 0 THEN
      found := found || convert_from(substring(tgargs FROM start FOR i - start), getdatabaseencoding());
      start := i + 1;
    END IF;
  END LOOP;
  RETURN CASE WHEN cardinality(found) = 9 AND cardinality(found[7]::text[] || found[8]::text[] || found[9]::text[]) > 0 THEN found END;
EXCEPTION WHEN invalid_text_representation THEN
  RETURN NULL;
END
$$
