-- Asks for the end of a job: sets cancel_requested_at, once. The pipeline sees the row or its event, and decides.
-- True if it is asked now or was before, false if the job has ended, null if there is none.
-- An error (55P03) where another transaction holds the row.
CREATE OR REPLACE FUNCTION rowcast.cancel(id text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET lock_timeout = '1s' -- for whoever calls has others waiting
SET row_security = on
BEGIN ATOMIC
  UPDATE public.job j SET cancel_requested_at = now()
   WHERE j.id = rowcast.as_uuid(cancel.id) AND j.cancel_requested_at IS NULL AND j.status NOT IN ('completed', 'failed', 'cancelled');
  SELECT j.status NOT IN ('completed', 'failed', 'cancelled') FROM public.job j WHERE j.id = rowcast.as_uuid(cancel.id);
END
