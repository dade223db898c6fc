-- One clear line for a channel that NOTIFY cannot have, or that is ours. Null is none.
CREATE OR REPLACE FUNCTION rowcast.check_channel(channel text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF channel !~ '^[A-Za-z_][A-Za-z0-9_]{0,62}$' OR lower(channel) LIKE 'rowcast%' THEN
    RAISE EXCEPTION 'channel % is no good: letters, digits and _, at most 63, not beginning with a digit or with rowcast',
      quote_literal(left(channel, 80)) USING ERRCODE = '22023';
  END IF;
END
$$
