-- Answers a request. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.request_done(id uuid, response text DEFAULT NULL, fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_request(jsonb_strip_nulls(jsonb_build_object('id', id, 'fence', fence, 'status', 'done', 'response', response)));
END
