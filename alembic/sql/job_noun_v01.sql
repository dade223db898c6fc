-- One job, as its events tell it; see request_noun.
CREATE OR REPLACE FUNCTION rowcast.job_noun(n public.job) RETURNS jsonb
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object(
    'id', n.id, 'kind', n.kind, 'name', n.name, 'session_id', n.session_id, 'project_id', n.project_id,
    'status', n.status, 'stage', n.stage, 'progress', n.progress, 'message', rowcast.fit(n.message),
    'result', rowcast.fit(n.result), 'error', rowcast.fit(n.error), 'cancel_requested_at', n.cancel_requested_at,
    'created_at', n.created_at, 'updated_at', n.updated_at);
END
