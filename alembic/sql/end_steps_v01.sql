-- Ends the open steps of jobs that have ended, as they did. They are locked already: see hold_steps.
CREATE OR REPLACE FUNCTION rowcast.end_steps(jobs uuid[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
BEGIN ATOMIC
  UPDATE public.job_step s SET status = j.status, error = CASE WHEN j.status = 'failed' THEN j.error ELSE s.error END
    FROM public.job j
   WHERE j.id = ANY (jobs) AND j.status IN ('completed', 'failed', 'cancelled')
     AND s.job_id = j.id AND s.status IN ('pending', 'running', 'processing');
END
