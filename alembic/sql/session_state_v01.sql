-- What a page that shows one session needs to begin with: the session, its requests, the jobs that have not ended,
-- with their steps, and its messages; and the position that this is true at. All of it is of the calling statement's
-- snapshot: what the log holds up to `position` is in it, and what comes after may be, which does no harm.
--
-- Of each list the newest `most` rows, oldest first (of steps: of all these jobs together), up to the one that makes it
-- 8 MB of texts; `more` if that left something out. Rows look as in events. An id that is none of ours: session is null.
-- First only keys and sizes are looked at, so that what is left out is not even read.
CREATE OR REPLACE FUNCTION rowcast.session_state(id text, most integer) RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET enable_seqscan = off
SET jit = off
SET row_security = on
BEGIN ATOMIC
  WITH requests AS (
    SELECT f.id, row_number() OVER newest <= most AS shown
      FROM (SELECT r.id, r.sequence_number FROM public.request r
             WHERE r.session_id = rowcast.as_uuid(session_state.id)
             ORDER BY r.sequence_number DESC, r.id DESC LIMIT most + 1) f
    WINDOW newest AS (ORDER BY f.sequence_number DESC, f.id DESC)
  ), jobs AS (
    SELECT f.id, row_number() OVER newest <= most AND sum(f.size) OVER newest - f.size < 8388608 AS shown
      FROM (SELECT j.id, j.created_at,
                   coalesce(octet_length(rowcast.fit(j.message)), 0) + coalesce(octet_length(rowcast.fit(j.error)), 0)
                   + coalesce(pg_column_size(j.result #> '{}'), 0) AS size
              FROM public.job j
             WHERE j.session_id = rowcast.as_uuid(session_state.id) AND j.status NOT IN ('completed', 'failed', 'cancelled')
             ORDER BY j.created_at DESC, j.id DESC LIMIT most + 1) f
    WINDOW newest AS (ORDER BY f.created_at DESC, f.id DESC)
  ), steps AS (
    SELECT f.id, row_number() OVER newest <= most AND sum(f.size) OVER newest - f.size < 8388608 AS shown
      FROM (SELECT s.id, s.sequence_number,
                   coalesce(octet_length(rowcast.fit(s.error)), 0) + coalesce(pg_column_size(s.state #> '{}'), 0) AS size
              FROM jobs JOIN public.job_step s ON s.job_id = jobs.id
             WHERE jobs.shown
             ORDER BY s.sequence_number DESC, s.id DESC LIMIT most + 1) f
    WINDOW newest AS (ORDER BY f.sequence_number DESC, f.id DESC)
  ), messages AS (
    SELECT f.id, row_number() OVER newest <= most AND sum(f.size) OVER newest - f.size < 8388608 AS shown
      FROM (SELECT m.id, m.created_at, coalesce(octet_length(rowcast.fit(m.text)), 0) + pg_column_size(m.metadata #> '{}') AS size
              FROM public.message m
             WHERE m.session_id = rowcast.as_uuid(session_state.id)
             ORDER BY m.created_at DESC, m.id DESC LIMIT most + 1) f
    WINDOW newest AS (ORDER BY f.created_at DESC, f.id DESC)
  ), steps_of AS (
    SELECT s.job_id, jsonb_agg(rowcast.job_step_noun(s.*) ORDER BY s.sequence_number, s.id) AS steps
      FROM steps f JOIN public.job_step s ON s.id = f.id
     WHERE f.shown GROUP BY s.job_id
  )
  SELECT jsonb_build_object(
    'epoch', (SELECT e.epoch FROM rowcast.epoch e ORDER BY e.id DESC LIMIT 1),
    'position', (SELECT max(h.position) FROM rowcast.head h),
    'session', (
      SELECT jsonb_build_object('id', s.id, 'project_id', s.project_id, 'owner_id', s.owner_id, 'created_at', s.created_at, 'updated_at', s.updated_at)
        FROM public.session s WHERE s.id = rowcast.as_uuid(session_state.id)),
    'requests', coalesce((
      SELECT jsonb_agg(rowcast.request_noun(r.*) ORDER BY r.sequence_number, r.id)
        FROM requests f JOIN public.request r ON r.id = f.id WHERE f.shown), '[]'),
    'jobs', coalesce((
      SELECT jsonb_agg(rowcast.job_noun(j.*) || jsonb_build_object('steps', coalesce(s.steps, '[]')) ORDER BY j.created_at, j.id)
        FROM jobs f JOIN public.job j ON j.id = f.id LEFT JOIN steps_of s ON s.job_id = j.id WHERE f.shown), '[]'),
    'messages', coalesce((
      SELECT jsonb_agg(rowcast.message_noun(m.*) || jsonb_build_object('text', rowcast.fit(m.text)) ORDER BY m.created_at, m.id)
        FROM messages f JOIN public.message m ON m.id = f.id WHERE f.shown), '[]'),
    'more', EXISTS (
      SELECT FROM requests f WHERE NOT f.shown UNION ALL SELECT FROM jobs f WHERE NOT f.shown
      UNION ALL SELECT FROM steps f WHERE NOT f.shown UNION ALL SELECT FROM messages f WHERE NOT f.shown));
END
