-- Ends requests whose lease ran out, oldest first; one that has ended only loses its lease. See reap.
CREATE OR REPLACE FUNCTION rowcast.reap_requests(most integer, passed integer DEFAULT 0) RETURNS integer
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
    SELECT q.id, q.status IN ('done', 'error') AS ended
      FROM public.request q
     WHERE q.lease_expires_at < (SELECT clock_timestamp()) ORDER BY q.lease_expires_at LIMIT most OFFSET passed
       FOR UPDATE SKIP LOCKED
  ), done AS (
    UPDATE public.request q
       SET status = CASE WHEN d.ended THEN q.status ELSE 'error' END,
           error = CASE WHEN d.ended THEN q.error ELSE 'the program that answered it is gone: its lease ran out' END,
           fence = CASE WHEN d.ended THEN q.fence END,
           lease_expires_at = NULL
      FROM due d WHERE q.id = d.id
    RETURNING q.id
  )
  SELECT count(*)::integer FROM done;
END
