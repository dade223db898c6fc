-- Creates steps of jobs, or changes them: many at once, as message_write does messages. Until the end of the transaction the
-- job is locked FOR SHARE, which conflicts with any change of it: while a step is written, its job cannot end (KEY SHARE,
-- as the foreign key takes it, would let it), and several may write steps of one job.
CREATE OR REPLACE FUNCTION rowcast.job_step_write(writes jsonb, durable boolean DEFAULT true)
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
    SELECT a.n, a.write, w.*
      FROM jsonb_array_elements(rowcast.check_writes(writes, '{pending,running,processing,completed,failed,cancelled}', '{id,job_id}')) WITH ORDINALITY AS a (write, n),
           jsonb_to_record(a.write) AS w (id uuid, job_id uuid, fence uuid, name text, status text)
  ), judged AS MATERIALIZED (
    SELECT a.n, a.id, a.job_id, t.*, s.held IS NULL AS is_new, CASE
             WHEN j.held IS NULL OR s.job_id <> a.job_id THEN 'gone'
             WHEN a.fence IS NOT NULL AND j.fence IS NULL THEN 'expired'
             WHEN a.fence <> j.fence THEN 'taken'
             WHEN s.held IS NOT NULL AND (t.name COLLATE "C", t.status, t.state, t.error COLLATE "C")
                  IS NOT DISTINCT FROM (s.name COLLATE "C", s.status, s.state, s.error COLLATE "C") THEN 'written'
             WHEN j.status IN ('completed', 'failed', 'cancelled') OR s.status IN ('completed', 'failed', 'cancelled') THEN 'ended'
             WHEN NOT j.held OR NOT s.held THEN 'locked'
           END AS outcome
      FROM asked a
      LEFT JOIN LATERAL (
        SELECT l.* FROM (SELECT j.fence, j.status, true AS held FROM public.job j WHERE j.id = a.job_id FOR SHARE SKIP LOCKED) l
        UNION ALL
        SELECT j.fence, j.status, false FROM public.job j WHERE j.id = a.job_id
        LIMIT 1
      ) j ON true
      LEFT JOIN LATERAL (
        SELECT l.* FROM (
          SELECT s.job_id, s.name, s.status, s.state, s.error, true AS held FROM public.job_step s WHERE s.id = a.id FOR NO KEY UPDATE SKIP LOCKED) l
        UNION ALL
        SELECT s.job_id, s.name, s.status, s.state, s.error, false FROM public.job_step s WHERE s.id = a.id
        LIMIT 1
      ) s ON true
      LEFT JOIN LATERAL (
        SELECT coalesce(a.name, s.name, '') AS name,
               coalesce(a.status, s.status, 'running') AS status,
               CASE WHEN a.write ? 'state' THEN nullif(a.write -> 'state', 'null') ELSE s.state END AS state,
               CASE WHEN a.write ? 'error' THEN a.write ->> 'error' ELSE s.error END AS error
        OFFSET 0
      ) t ON true
  ), made AS (
    INSERT INTO public.job_step (id, job_id, name, status, state, error)
    SELECT t.id, t.job_id, t.name, t.status, t.state, t.error FROM judged t WHERE t.outcome IS NULL AND t.is_new ORDER BY t.n
    ON CONFLICT (id) DO NOTHING -- somebody else made it at the same moment
    RETURNING job_step.id
  ), done AS (
    UPDATE public.job_step s SET name = t.name, status = t.status, state = t.state, error = t.error
      FROM judged t WHERE s.id = t.id AND t.outcome IS NULL AND NOT t.is_new
  )
  SELECT t.id, CASE WHEN t.outcome IS NULL AND t.is_new AND t.id NOT IN (SELECT m.id FROM made m) THEN 'locked' ELSE coalesce(t.outcome, 'written') END
    FROM judged t ORDER BY t.n;
END
