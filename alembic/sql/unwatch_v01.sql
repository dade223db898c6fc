-- Takes back rowcast.watch(), on partitions too.
CREATE OR REPLACE FUNCTION rowcast.unwatch(target regclass) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  each record;
  found boolean := false;
BEGIN
  FOR each IN
    SELECT g.tgname, f.member FROM rowcast.family(target) f JOIN pg_trigger g ON g.tgrelid = f.member
     WHERE g.tgfoid = 'rowcast.capture()'::regprocedure
  LOOP
    EXECUTE format('DROP TRIGGER %I ON %s', each.tgname, each.member);
    found := true;
  END LOOP;
  IF NOT found THEN
    RAISE EXCEPTION '% is not watched: SELECT * FROM rowcast.watches says what is', target USING ERRCODE = '42704';
  END IF;
END
$$
