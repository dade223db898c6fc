-- One write of message_write, which waits for the row, and an error where it is not done.
CREATE OR REPLACE FUNCTION rowcast.change_message(write jsonb, lease interval) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT FROM public.message m WHERE m.id = (write ->> 'id')::uuid FOR NO KEY UPDATE;
  SELECT rowcast.settled('message', w.id, w.outcome, (SELECT m.status FROM public.message m WHERE m.id = w.id))
    FROM rowcast.message_write(jsonb_build_array(write), change_message.lease) w;
END
