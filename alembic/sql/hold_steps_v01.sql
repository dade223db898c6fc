-- Locks the steps of a job that have not ended; false where somebody else has one of them. It is called once the job is
-- locked and looks anew: a step that came after the caller's snapshot is seen, and no other comes (see job_step_write).
CREATE OR REPLACE FUNCTION rowcast.hold_steps(job_id uuid) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
BEGIN ATOMIC
  WITH held AS MATERIALIZED (
    SELECT s.id FROM public.job_step s
     WHERE s.job_id = hold_steps.job_id AND s.status IN ('pending', 'running', 'processing')
       FOR NO KEY UPDATE SKIP LOCKED
  )
  SELECT NOT EXISTS (
    SELECT FROM public.job_step s
     WHERE s.job_id = hold_steps.job_id AND s.status IN ('pending', 'running', 'processing') AND s.id NOT IN (SELECT h.id FROM held h));
END
