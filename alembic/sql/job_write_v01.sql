-- Changes many jobs at once, as message_write does messages. A key that is absent leaves its column, null empties it.
-- The open steps of a job that ends, end with it; where somebody else has one of them, the job is 'locked'.
CREATE OR REPLACE FUNCTION rowcast.job_write(writes jsonb, lease interval DEFAULT '30 seconds', durable boolean DEFAULT true)
RETURNS TABLE (id uuid, outcome text, cancel_requested boolean)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', CASE WHEN durable THEN 'on' ELSE 'off' END, true) WHERE durable = (current_setting('synchronous_commit') = 'off');
  WITH asked AS MATERIALIZED (
    SELECT a.n, a.write, w.id, w.fence, w.revision, w.status, w.status IN ('completed', 'failed', 'cancelled') AS ends,
           least(greatest(w.progress, 0), 100)::real AS progress, w.progress IS NOT NULL AS progresses, clock_timestamp() AS at
      FROM jsonb_array_elements(rowcast.check_writes(writes, '{running,processing,completed,failed,cancelled}', '{id}')) WITH ORDINALITY AS a (write, n),
           jsonb_to_record(a.write) AS w (id uuid, fence uuid, revision bigint, status text, progress numeric)
  ), judged AS MATERIALIZED (
    SELECT a.n, a.id, t.*, r.cancel_requested_at IS NOT NULL AND r.held IS NOT NULL AS cancel_requested, r.held IS NOT NULL AS found, CASE
             WHEN r.held IS NULL THEN 'gone'
             WHEN a.fence IS NOT NULL AND r.fence IS NULL THEN 'expired'
             WHEN a.fence <> r.fence THEN 'taken'
             WHEN (t.status, t.stage COLLATE "C", t.progress, t.message COLLATE "C", t.result, t.error COLLATE "C")
                  IS NOT DISTINCT FROM (r.status, r.stage COLLATE "C", r.progress, r.message COLLATE "C", r.result, r.error COLLATE "C")
                  AND (r.ended OR t.lease_expires_at IS NOT DISTINCT FROM r.lease_expires_at
                       AND (t.revision IS NOT DISTINCT FROM r.revision OR a.revision < coalesce(r.revision, 0))) THEN 'written'
             WHEN r.ended THEN 'ended'
             WHEN a.revision < coalesce(r.revision, 0) THEN 'overtaken'
             WHEN NOT r.held THEN 'locked'
             WHEN a.ends AND NOT rowcast.hold_steps(a.id) THEN 'locked'
           END AS outcome
      FROM asked a
      LEFT JOIN LATERAL (
        SELECT h.*, h.status IN ('completed', 'failed', 'cancelled') AS ended
          FROM (
            SELECT l.* FROM (
              SELECT j.fence, j.revision, j.lease_expires_at, j.status, j.stage, j.progress, j.message, j.result, j.error, j.cancel_requested_at, true AS held
                FROM public.job j WHERE j.id = a.id FOR NO KEY UPDATE SKIP LOCKED) l
            UNION ALL
            SELECT j.fence, j.revision, j.lease_expires_at, j.status, j.stage, j.progress, j.message, j.result, j.error, j.cancel_requested_at, false
              FROM public.job j WHERE j.id = a.id
            LIMIT 1
          ) h
      ) r ON true
      LEFT JOIN LATERAL (
        SELECT coalesce(a.status, r.status) AS status,
               CASE WHEN a.write ? 'stage' THEN a.write ->> 'stage' ELSE r.stage END AS stage,
               CASE WHEN a.progresses THEN a.progress WHEN a.status = 'completed' AND NOT r.ended THEN 100::real ELSE r.progress END AS progress,
               CASE WHEN a.write ? 'message' THEN a.write ->> 'message' ELSE r.message END AS message,
               CASE WHEN a.write ? 'result' THEN nullif(a.write -> 'result', 'null') ELSE r.result END AS result,
               CASE WHEN a.write ? 'error' THEN a.write ->> 'error' ELSE r.error END AS error,
               coalesce(a.revision, r.revision) AS revision,
               CASE WHEN a.ends THEN NULL ELSE rowcast.renewed(r.lease_expires_at, job_write.lease, a.at) END AS lease_expires_at
        OFFSET 0
      ) t ON true
  ), done AS (
    UPDATE public.job j
       SET status = t.status, stage = t.stage, progress = t.progress, message = t.message, result = t.result, error = t.error,
           revision = t.revision, lease_expires_at = t.lease_expires_at
      FROM judged t WHERE j.id = t.id AND t.outcome IS NULL
    RETURNING j.id, j.status
  ), ended AS MATERIALIZED ( -- all of them at once, and once the jobs are changed
    SELECT CASE WHEN count(*) > 0 THEN rowcast.end_steps(array_agg(d.id)) END FROM done d WHERE d.status IN ('completed', 'failed', 'cancelled')
  )
  SELECT j.id, coalesce(j.outcome, 'written'), CASE WHEN j.found THEN j.cancel_requested END FROM judged j CROSS JOIN ended ORDER BY j.n;
END
