-- One request, as its events and the state of its session tell it; the planner inlines it. BEGIN ATOMIC: see message_event.
CREATE OR REPLACE FUNCTION rowcast.request_noun(n public.request) RETURNS jsonb
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT jsonb_build_object(
    'request_id', n.id, 'session_id', n.session_id, 'status', n.status,
    'updated_at', date_part('epoch', n.updated_at),
    'has_response', n.response IS NOT NULL, 'has_error', n.error IS NOT NULL,
    'sequence_number', n.sequence_number);
END
