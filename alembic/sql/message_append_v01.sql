-- Appends to a message, or with '' only renews its lease; returns the length of its text afterwards, in code points. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.message_append(id uuid, text text, fence uuid DEFAULT NULL, lease interval DEFAULT '30 seconds') RETURNS bigint
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_message(jsonb_build_object('id', message_append.id, 'fence', fence, 'delta', text), lease);
  SELECT length(m.text)::bigint FROM public.message m WHERE m.id = message_append.id;
END
