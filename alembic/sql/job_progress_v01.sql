-- Tells how far a job is, and renews its lease; what is null stays. Returns whether its end was asked for. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.job_progress(id uuid, progress real DEFAULT NULL, stage text DEFAULT NULL, message text DEFAULT NULL, fence uuid DEFAULT NULL,
  lease interval DEFAULT '30 seconds') RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_job(
    jsonb_strip_nulls(jsonb_build_object('id', id, 'fence', fence, 'progress', progress, 'stage', stage, 'message', message)), lease);
END
