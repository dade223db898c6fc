-- The bare payload on the channel that the event names, for tools that LISTEN themselves. NOTIFY takes less than
-- 8,000 bytes: of a longer payload they hear its position, and read the log. A name that is no channel is passed over.
CREATE OR REPLACE FUNCTION rowcast.notify(event rowcast.event) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
  payload text;
BEGIN
  IF rowcast.is_channel(event.channel) THEN
    payload := event.payload::text;
    IF pg_catalog.octet_length(payload) >= 8000 THEN
      payload := pg_catalog.json_build_object('position', event.position, 'omitted', true)::text;
    END IF;
    PERFORM pg_catalog.pg_notify(event.channel, payload);
  END IF;
END
$$
