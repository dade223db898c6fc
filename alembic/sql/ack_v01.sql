-- Remembers that a consumer is done with all events up to a position. Only forward: an earlier one changes nothing.
-- Error 22023 for a name that is empty or over 200 characters, or a position that the log does not have yet.
CREATE OR REPLACE FUNCTION rowcast.ack(name text, "position" bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  head constant bigint := (SELECT max(h.position) FROM rowcast.head h);
BEGIN
  IF length(name) BETWEEN 1 AND 200 IS NOT TRUE THEN
    RAISE EXCEPTION 'a subscription''s name has 1 to 200 characters' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF ack.position BETWEEN 0 AND head IS NOT TRUE THEN
    RAISE EXCEPTION 'position % is none of this log, which is at %', ack.position, head USING ERRCODE = 'invalid_parameter_value';
  END IF;
  INSERT INTO rowcast.subscription AS s VALUES (ack.name, ack.position, now())
  ON CONFLICT ON CONSTRAINT subscription_pkey DO UPDATE SET position = excluded.position, updated_at = excluded.updated_at
  WHERE s.position < excluded.position;
END
$$
