-- One message, as its events tell it; see request_noun. Its text is told apart.
CREATE OR REPLACE FUNCTION rowcast.message_noun(n public.message) RETURNS jsonb
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object(
    'id', n.id, 'session_id', n.session_id, 'job_id', n.job_id, 'role', n.role, 'status', n.status,
    'metadata', rowcast.fit(n.metadata), 'created_at', n.created_at, 'updated_at', n.updated_at);
END
