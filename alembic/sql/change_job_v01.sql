-- One write of job_write, which waits for the row and for the steps that end with it, and an error where it is not done.
-- Returns whether the job's end was asked for.
CREATE OR REPLACE FUNCTION rowcast.change_job(write jsonb, lease interval) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT FROM public.job j WHERE j.id = (write ->> 'id')::uuid FOR NO KEY UPDATE;
  SELECT FROM public.job_step s
   WHERE s.job_id = (write ->> 'id')::uuid AND write ->> 'status' IN ('completed', 'failed', 'cancelled')
     AND s.status IN ('pending', 'running', 'processing')
   ORDER BY s.id FOR NO KEY UPDATE;
  SELECT w.cancel_requested FROM rowcast.job_write(jsonb_build_array(write), change_job.lease) w
   WHERE rowcast.settled('job', w.id, w.outcome, (SELECT j.status FROM public.job j WHERE j.id = w.id));
END
