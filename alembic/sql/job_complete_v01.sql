-- Ends a job in good order, and its open steps. Errors: see settled.
CREATE OR REPLACE FUNCTION rowcast.job_complete(id uuid, result jsonb DEFAULT NULL, fence uuid DEFAULT NULL) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT rowcast.change_job(
    jsonb_build_object('id', id, 'fence', fence, 'status', 'completed') || CASE WHEN result IS NULL THEN '{}' ELSE jsonb_build_object('result', result) END, NULL);
END
