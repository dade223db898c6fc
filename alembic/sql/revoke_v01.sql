-- Ends what was allowed until now: to a user, with a token, in a session, or several of these. Every hub hears of it in
-- the log; one that was away finds it in rowcast.revocation. Error 22023 where nothing, or what can be no id, is given.
CREATE OR REPLACE FUNCTION rowcast.revoke(subject text DEFAULT NULL, token text DEFAULT NULL, session_id text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  each text;
BEGIN
  IF coalesce(subject, token, session_id) IS NULL THEN
    RAISE EXCEPTION 'nothing to revoke: give subject, token or session_id' USING ERRCODE = '22023';
  END IF;
  FOREACH each IN ARRAY array_remove(ARRAY[subject, token, session_id], NULL) LOOP
    PERFORM rowcast.check_id(each);
  END LOOP;
  FOREACH each IN ARRAY array_remove(ARRAY['user:' || subject, 'token:' || token, 'session:' || session_id], NULL) LOOP
    INSERT INTO rowcast.revocation AS r (what, at) VALUES (each, clock_timestamp())
    ON CONFLICT (what) DO UPDATE SET at = greatest(r.at, excluded.at);
    INSERT INTO rowcast.outbox (type, payload) VALUES ('access.changed', jsonb_build_object('of', each));
  END LOOP;
  PERFORM rowcast.ring();
END
$$
