-- What a change of one job is told as; see message_event. Its project is its own, or else its session's.
CREATE OR REPLACE FUNCTION rowcast.job_event(o public.job, n public.job, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, request_id text, user_id text, channel text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT e.session_id::text,
         CASE WHEN e.project THEN coalesce(CASE e.who WHEN 'left' THEN o.project_id ELSE n.project_id END::text, session.project_id) END,
         e.job_id::text,
         NULL::text,
         CASE WHEN e.session_id IS NOT NULL THEN session.owner_id END,
         NULL::text,
         CASE WHEN e.change = 'deleted' THEN 'job.deleted'
              ELSE CASE n.kind WHEN 'ingest' THEN 'ingest.job.' WHEN 'agent' THEN 'agent.run.' WHEN 'workflow' THEN 'workflow.run.' ELSE 'task.' END
                   || CASE WHEN n.kind = 'task' AND e.change = 'updated' THEN 'progress' ELSE e.change END
         END,
         CASE WHEN e.change = 'deleted' THEN
             jsonb_build_object('job', jsonb_build_object('id', o.id, 'kind', o.kind, 'session_id', o.session_id, 'project_id', o.project_id), 'timestamp', at)
           ELSE
             jsonb_build_object(
               CASE WHEN n.kind IN ('agent', 'workflow') THEN 'run' ELSE 'job' END, rowcast.job_noun(n),
               'timestamp', at)
             || CASE WHEN e.change = 'failed' THEN jsonb_build_object('errorMessage', rowcast.fit(n.error)) ELSE '{}' END
         END
    FROM (
      SELECT told.who,
             CASE told.who WHEN 'left' THEN CASE WHEN c.session THEN o.session_id END
                           WHEN 'kept' THEN CASE WHEN NOT c.session THEN n.session_id END
                           ELSE CASE WHEN c.session THEN n.session_id END END AS session_id,
             c.project = (told.who <> 'kept') AS project,
             CASE told.who WHEN 'left' THEN CASE WHEN n.id IS NULL THEN o.id END
                           WHEN 'kept' THEN n.id
                           ELSE CASE WHEN o.id IS NULL THEN n.id END END AS job_id,
             CASE told.who
               WHEN 'left' THEN CASE WHEN o.id IS NOT NULL AND (n.id IS NULL OR c.session AND o.session_id IS NOT NULL
                 OR c.project AND coalesce(o.project_id, o.session_id) IS NOT NULL) THEN 'deleted' END
               WHEN 'kept' THEN CASE
                 WHEN o.id IS NULL OR n.id IS NULL THEN NULL
                 WHEN n.status <> o.status AND n.status IN ('completed', 'failed', 'cancelled') THEN n.status
                 WHEN (n.kind, n.name COLLATE "C", n.session_id, n.project_id, n.status, n.stage COLLATE "C", n.progress,
                       n.message COLLATE "C", n.result, n.error COLLATE "C", n.cancel_requested_at)
                      IS DISTINCT FROM
                      (o.kind, o.name COLLATE "C", o.session_id, o.project_id, o.status, o.stage COLLATE "C", o.progress,
                       o.message COLLATE "C", o.result, o.error COLLATE "C", o.cancel_requested_at) THEN 'updated'
               END
               ELSE CASE WHEN n.id IS NOT NULL AND (o.id IS NULL OR c.session AND n.session_id IS NOT NULL
                 OR c.project AND coalesce(n.project_id, n.session_id) IS NOT NULL) THEN 'created' END
             END AS change
        FROM (VALUES ('left'), ('kept'), ('joined')) AS told (who),
             (SELECT n.session_id IS DISTINCT FROM o.session_id AS session,
                     (n.project_id, CASE WHEN n.project_id IS NULL THEN n.session_id END) IS DISTINCT FROM
                     (o.project_id, CASE WHEN o.project_id IS NULL THEN o.session_id END) AS project) c
      OFFSET 0
    ) e
    LEFT JOIN LATERAL (
      SELECT s.project_id::text, s.owner_id FROM public.session s WHERE s.id = CASE e.who WHEN 'left' THEN o.session_id ELSE n.session_id END
       LIMIT 1 -- a fence: looked up by key, never by joining whole tables
    ) session ON true
   WHERE e.change IS NOT NULL;
END
