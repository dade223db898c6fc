-- One job now, with its newest 500 steps (up to 8 MB, as in session_state), and the position that this is true at.
-- `job` is null if there is none. Its project is its own, or else its session's.
CREATE OR REPLACE FUNCTION rowcast.job_state(id text) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET enable_seqscan = off
SET jit = off
SET row_security = on
BEGIN ATOMIC
  WITH steps AS (
    SELECT f.id, row_number() OVER newest <= 500 AND sum(f.size) OVER newest - f.size < 8388608 AS shown
      FROM (SELECT s.id, s.sequence_number,
                   coalesce(octet_length(rowcast.fit(s.error)), 0) + coalesce(pg_column_size(s.state #> '{}'), 0) AS size
              FROM public.job_step s
             WHERE s.job_id = rowcast.as_uuid(job_state.id)
             ORDER BY s.sequence_number DESC, s.id DESC LIMIT 501) f
    WINDOW newest AS (ORDER BY f.sequence_number DESC, f.id DESC)
  )
  SELECT jsonb_build_object(
    'epoch', (SELECT e.epoch FROM rowcast.epoch e ORDER BY e.id DESC LIMIT 1),
    'position', (SELECT max(h.position) FROM rowcast.head h),
    'job', (
      SELECT rowcast.job_noun(j.*) || jsonb_build_object('project_id', coalesce(j.project_id, s.project_id))
        FROM public.job j LEFT JOIN public.session s ON s.id = j.session_id
       WHERE j.id = rowcast.as_uuid(job_state.id)),
    'steps', coalesce((
      SELECT jsonb_agg(rowcast.job_step_noun(s.*) ORDER BY s.sequence_number, s.id)
        FROM steps f JOIN public.job_step s ON s.id = f.id WHERE f.shown), '[]'),
    'more', EXISTS (SELECT FROM steps f WHERE NOT f.shown));
END
