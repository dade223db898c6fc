-- Ends a message in good order; a text replaces what is there. The same again is a retry. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.message_complete(id uuid, text text DEFAULT NULL, metadata jsonb DEFAULT '{}', fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_message(
    jsonb_build_object('id', id, 'fence', fence, 'status', 'completed', 'metadata', metadata)
    || CASE WHEN text IS NULL THEN '{}' ELSE jsonb_build_object('offset', 0, 'delta', text) END, NULL);
END
