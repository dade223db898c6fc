-- Tells in the log that somebody may have lost access, in order with all else: every hub asks again then.
-- Of the row only its key is read: to_jsonb(OLD) would run casts of users' types with our rights.
CREATE OR REPLACE FUNCTION rowcast.access_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  INSERT INTO rowcast.outbox (type, payload) VALUES ('access.changed', jsonb_build_object('of', rowcast.access_of(OLD)));
  PERFORM rowcast.ring();
  RETURN NULL;
END
$$
