-- Ends rows of one table, together; or, where one of them refuses (a constraint or a trigger of the user's), each by itself, so
-- that it keeps none of the others from being ended. PostgreSQL's log then says why. See reap.
CREATE OR REPLACE FUNCTION rowcast.reap_table(name text, most integer) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  n integer;
  done integer := 0;
  refused integer := 0;
BEGIN
  BEGIN
    EXECUTE format('SELECT rowcast.reap_%ss($1, 0)', name) INTO n USING most;
    RETURN n;
  EXCEPTION
    WHEN lock_not_available OR deadlock_detected THEN RAISE;
    WHEN OTHERS THEN NULL;
  END;
  WHILE done < most AND refused < most LOOP
    BEGIN
      EXECUTE format('SELECT rowcast.reap_%ss(1, $1)', name) INTO n USING refused;
      EXIT WHEN n = 0;
      done := done + n;
    EXCEPTION
      WHEN lock_not_available OR deadlock_detected THEN RAISE;
      WHEN OTHERS THEN
        RAISE WARNING 'a % whose lease ran out cannot be ended: %', name, SQLERRM;
        refused := refused + 1;
    END;
  END LOOP;
  RETURN done;
END
$$
