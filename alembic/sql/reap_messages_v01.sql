-- Fails messages whose lease ran out, oldest first; one that has ended only loses its lease. See reap.
CREATE OR REPLACE FUNCTION rowcast.reap_messages(most integer, passed integer DEFAULT 0) RETURNS integer
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
    SELECT m.id, m.status IN ('completed', 'failed') AS ended
      FROM public.message m
     WHERE m.lease_expires_at < (SELECT clock_timestamp()) ORDER BY m.lease_expires_at LIMIT most OFFSET passed
       FOR UPDATE SKIP LOCKED -- looks again at what it locks: a lease that was just renewed is not due
  ), done AS (
    UPDATE public.message m
       SET status = CASE WHEN d.ended THEN m.status ELSE 'failed' END,
           metadata = CASE WHEN d.ended THEN m.metadata ELSE CASE WHEN jsonb_typeof(m.metadata) = 'object' THEN m.metadata ELSE '{}' END
             || '{"error": "The answer was interrupted. Please try again.", "reason": "lease_expired"}' END,
           fence = CASE WHEN d.ended THEN m.fence END,
           lease_expires_at = NULL
      FROM due d WHERE m.id = d.id
    RETURNING m.id
  )
  SELECT count(*)::integer FROM done;
END
