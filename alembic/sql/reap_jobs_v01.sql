-- Fails jobs whose lease ran out, oldest first, and their open steps; one that has ended only loses its lease. See reap.
-- One of whose steps somebody else has is left for the next time.
CREATE OR REPLACE FUNCTION rowcast.reap_jobs(most integer, passed integer DEFAULT 0) RETURNS integer
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
SET row_security = on
BEGIN ATOMIC
  WITH due AS MATERIALIZED (
    SELECT j.id, j.status IN ('completed', 'failed', 'cancelled') AS ended
      FROM public.job j
     WHERE j.lease_expires_at < (SELECT clock_timestamp()) ORDER BY j.lease_expires_at LIMIT most OFFSET passed
       FOR UPDATE SKIP LOCKED
  ), free AS MATERIALIZED (
    SELECT d.id, d.ended FROM due d WHERE CASE WHEN d.ended THEN true ELSE rowcast.hold_steps(d.id) END
  ), done AS (
    UPDATE public.job j
       SET status = CASE WHEN f.ended THEN j.status ELSE 'failed' END,
           error = CASE WHEN f.ended THEN j.error ELSE 'the program that ran it is gone: its lease ran out' END,
           fence = CASE WHEN f.ended THEN j.fence END,
           lease_expires_at = NULL
      FROM free f WHERE j.id = f.id
    RETURNING j.id, f.ended
  ), ended AS MATERIALIZED (
    SELECT CASE WHEN count(*) > 0 THEN rowcast.end_steps(array_agg(d.id)) END FROM done d WHERE NOT d.ended
  )
  SELECT (SELECT count(*)::integer FROM done) FROM ended;
END
