-- What a change of one step of a job is told as; see message_event. The job says which kind it is and who
-- follows it; when it went in the same statement, only the followers of that one job are told.
CREATE OR REPLACE FUNCTION rowcast.job_step_event(o public.job_step, n public.job_step, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, request_id text, user_id text, channel text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT job.session_id, job.project_id, e.job_id::text, NULL::text, job.owner_id, NULL::text, t.type,
         CASE WHEN e.change = 'deleted' THEN
             jsonb_build_object('step', jsonb_build_object('id', o.id, 'job_id', o.job_id), 'timestamp', at)
           ELSE
             jsonb_build_object(
               CASE WHEN t.type LIKE 'workflow.%' THEN 'nodeState' ELSE 'step' END, rowcast.job_step_noun(n),
               'timestamp', at)
             || CASE WHEN n.status = 'failed' THEN jsonb_build_object('errorMessage', rowcast.fit(n.error)) ELSE '{}' END
         END
    FROM (
      SELECT CASE WHEN told.old THEN o.job_id ELSE n.job_id END AS job_id,
             CASE
               WHEN told.old THEN CASE WHEN n.id IS NULL OR n.job_id <> o.job_id THEN 'deleted' END
               WHEN n.id IS NULL THEN NULL
               WHEN o.id IS NULL OR n.job_id <> o.job_id OR n.status <> o.status THEN 'status'
               WHEN (n.name COLLATE "C", n.sequence_number, n.error COLLATE "C") IS DISTINCT FROM (o.name COLLATE "C", o.sequence_number, o.error COLLATE "C") THEN 'step'
               WHEN n.state IS DISTINCT FROM o.state THEN 'state'
             END AS change
        FROM (VALUES (true), (false)) AS told (old)
      OFFSET 0
    ) e
    LEFT JOIN LATERAL (
      SELECT j.kind, j.session_id::text, coalesce(j.project_id, s.project_id)::text AS project_id, s.owner_id
        FROM public.job j LEFT JOIN public.session s ON s.id = j.session_id
       WHERE j.id = e.job_id
       LIMIT 1 -- a fence: looked up by key, never by joining whole tables
    ) job ON true,
    LATERAL (
      SELECT CASE
        WHEN e.change = 'deleted' THEN 'job_step.deleted'
        WHEN job.kind = 'workflow' AND e.change = 'status' AND n.status IN ('running', 'processing') THEN 'workflow.node.started'
        WHEN job.kind = 'workflow' AND e.change = 'status' AND n.status IN ('completed', 'failed') THEN 'workflow.node.' || n.status
        WHEN job.kind = 'workflow' OR job.kind = 'agent' AND e.change = 'state' THEN 'workflow.node_state.updated'
        WHEN job.kind = 'agent' THEN 'agent.step.updated'
        ELSE 'job_step.updated'
      END AS type
    ) t
   WHERE e.change IS NOT NULL;
END
