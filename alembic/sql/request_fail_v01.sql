-- Ends a request that went wrong. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.request_fail(id uuid, error text, fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_request(jsonb_strip_nulls(jsonb_build_object('id', id, 'fence', fence, 'status', 'error', 'error', error)));
END
