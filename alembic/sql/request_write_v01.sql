-- Changes many requests at once, as message_write does messages and job_write jobs.
CREATE OR REPLACE FUNCTION rowcast.request_write(writes jsonb, lease interval DEFAULT '30 seconds', durable boolean DEFAULT true)
RETURNS TABLE (id uuid, outcome text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', CASE WHEN durable THEN 'on' ELSE 'off' END, true) WHERE durable = (current_setting('synchronous_commit') = 'off');
  WITH asked AS MATERIALIZED (
    SELECT a.n, a.write, w.id, w.fence, w.status, clock_timestamp() AS at
      FROM jsonb_array_elements(rowcast.check_writes(writes, '{in_progress,done,error}', '{id}')) WITH ORDINALITY AS a (write, n),
           jsonb_to_record(a.write) AS w (id uuid, fence uuid, status text)
  ), judged AS MATERIALIZED (
    SELECT a.n, a.id, t.*, CASE
             WHEN r.held IS NULL THEN 'gone'
             WHEN a.fence IS NOT NULL AND r.fence IS NULL THEN 'expired'
             WHEN a.fence <> r.fence THEN 'taken'
             WHEN (t.status, t.response COLLATE "C", t.error COLLATE "C") IS NOT DISTINCT FROM (r.status, r.response COLLATE "C", r.error COLLATE "C")
                  AND (r.ended OR t.lease_expires_at IS NOT DISTINCT FROM r.lease_expires_at) THEN 'written'
             WHEN r.ended THEN 'ended'
             WHEN NOT r.held THEN 'locked'
           END AS outcome
      FROM asked a
      LEFT JOIN LATERAL (
        SELECT h.*, h.status IN ('done', 'error') AS ended
          FROM (
            SELECT l.* FROM (
              SELECT q.fence, q.lease_expires_at, q.status, q.response, q.error, true AS held
                FROM public.request q WHERE q.id = a.id FOR NO KEY UPDATE SKIP LOCKED) l
            UNION ALL
            SELECT q.fence, q.lease_expires_at, q.status, q.response, q.error, false FROM public.request q WHERE q.id = a.id
            LIMIT 1
          ) h
      ) r ON true
      LEFT JOIN LATERAL (
        SELECT coalesce(a.status, r.status) AS status,
               CASE WHEN a.write ? 'response' THEN a.write ->> 'response' ELSE r.response END AS response,
               CASE WHEN a.write ? 'error' THEN a.write ->> 'error' ELSE r.error END AS error,
               CASE WHEN a.status IN ('done', 'error') THEN NULL
                    ELSE rowcast.renewed(r.lease_expires_at, request_write.lease, a.at) END AS lease_expires_at
        OFFSET 0
      ) t ON true
  ), done AS (
    UPDATE public.request q SET status = t.status, response = t.response, error = t.error, lease_expires_at = t.lease_expires_at
      FROM judged t WHERE q.id = t.id AND t.outcome IS NULL
  )
  SELECT t.id, coalesce(t.outcome, 'written') FROM judged t ORDER BY t.n;
END
