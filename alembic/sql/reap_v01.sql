-- Ends what nobody holds any more: messages, jobs and requests whose lease ran out, at most `most` of each. Returns how many
-- rows that were; with as many as `most` there may be more. A row that somebody has locked is left for the next time.
-- Hubs call it each second. With nothing due no UPDATE is made, which would run triggers: it only reads, and takes no
-- transaction id.
CREATE OR REPLACE FUNCTION rowcast.reap(most integer DEFAULT 1000) RETURNS integer
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
SET lock_timeout = '1s' -- where a table was locked for long, its writers could not renew their leases: not before them
SET row_security = on
BEGIN ATOMIC
  SELECT CASE WHEN EXISTS (SELECT FROM public.message m WHERE m.lease_expires_at < (SELECT clock_timestamp())) THEN rowcast.reap_table('message', most) ELSE 0 END
       + CASE WHEN EXISTS (SELECT FROM public.job j WHERE j.lease_expires_at < (SELECT clock_timestamp())) THEN rowcast.reap_table('job', most) ELSE 0 END
       + CASE WHEN EXISTS (SELECT FROM public.request q WHERE q.lease_expires_at < (SELECT clock_timestamp())) THEN rowcast.reap_table('request', most) ELSE 0 END;
END
