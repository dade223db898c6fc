-- Replaces the text of a message. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.message_replace(id uuid, text text, fence uuid DEFAULT NULL, lease interval DEFAULT '30 seconds') RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_message(jsonb_build_object('id', id, 'fence', fence, 'offset', 0, 'delta', text), lease);
END
