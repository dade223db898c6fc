-- One step of a job, as its events tell it; see request_noun.
CREATE OR REPLACE FUNCTION rowcast.job_step_noun(n public.job_step) RETURNS jsonb
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object(
    'id', n.id, 'job_id', n.job_id, 'name', n.name, 'sequence_number', n.sequence_number, 'status', n.status,
    'state', rowcast.fit(n.state), 'error', rowcast.fit(n.error), 'created_at', n.created_at, 'updated_at', n.updated_at);
END
