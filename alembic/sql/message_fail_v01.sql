-- Ends a message that went wrong; `error` is for its reader, and goes to its metadata. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.message_fail(id uuid, error text DEFAULT 'Something went wrong. Please try again.', metadata jsonb DEFAULT '{}', fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_message(
    jsonb_build_object('id', id, 'fence', fence, 'status', 'failed', 'metadata', coalesce(metadata, '{}') || jsonb_build_object('error', error)), NULL);
END
