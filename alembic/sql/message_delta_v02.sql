-- What is written most, told as message_event would: the text of a message grew, and nothing else changed. Much
-- less to evaluate, so a capture of one row tries it first. No row: it is something else, or nothing.
CREATE OR REPLACE FUNCTION rowcast.message_delta(o public.message, n public.message, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, request_id text, user_id text, channel text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT n.session_id::text, s.project_id::text, n.job_id::text, NULL::text, s.owner_id, NULL::text, 'message.delta',
         jsonb_build_object('message_id', n.id, 'offset', length(o.text), 'delta', rowcast.fit(substr(n.text, length(o.text) + 1)), 'timestamp', at)
    FROM public.session s
   WHERE s.id = n.session_id
     AND (n.id, n.session_id, n.role, n.status, n.metadata) = (o.id, o.session_id, o.role, o.status, o.metadata)
     AND n.job_id IS NOT DISTINCT FROM o.job_id
     AND octet_length(n.text) > octet_length(o.text)
     AND starts_with(n.text COLLATE "C", o.text COLLATE "C");
END
