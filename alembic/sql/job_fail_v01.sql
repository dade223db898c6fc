-- Ends a job that went wrong, and its open steps. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.job_fail(id uuid, error text, fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_job(jsonb_strip_nulls(jsonb_build_object('id', id, 'fence', fence, 'status', 'failed', 'error', error)), NULL);
END
