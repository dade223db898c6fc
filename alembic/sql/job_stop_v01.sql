-- Ends a job whose end was asked for, and its open steps: they are cancelled. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.job_stop(id uuid, fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_job(jsonb_build_object('id', id, 'fence', fence, 'status', 'cancelled'), NULL);
END
