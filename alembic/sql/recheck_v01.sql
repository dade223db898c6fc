-- Has the live streams of a user asked again whether they may; for whoever keeps elsewhere what is allowed.
CREATE OR REPLACE FUNCTION rowcast.recheck(subject text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  PERFORM rowcast.check_id(subject);
  INSERT INTO rowcast.outbox (type, payload) VALUES ('access.changed', jsonb_build_object('of', 'user:' || subject));
  PERFORM rowcast.ring();
END
$$
