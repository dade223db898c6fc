-- Whether these columns say the same in both pictures of a row, so that its key and its followers do.
CREATE OR REPLACE FUNCTION rowcast.stays(o jsonb, n jsonb, columns text[]) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  col text;
BEGIN
  FOREACH col IN ARRAY columns LOOP
    IF o -> col IS DISTINCT FROM n -> col THEN
      RETURN false;
    END IF;
  END LOOP;
  RETURN true;
END
$$
