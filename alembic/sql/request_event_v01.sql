-- What a change of one request is told as; see message_event.
CREATE OR REPLACE FUNCTION rowcast.request_event(o public.request, n public.request, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT e.session_id::text,
         (SELECT s.project_id::text FROM public.session s WHERE s.id = e.session_id),
         NULL::text,
         e.type,
         CASE e.type
           WHEN 'request.deleted' THEN jsonb_build_object('request_id', o.id, 'session_id', o.session_id, 'timestamp', at)
           ELSE jsonb_build_object(
             'request_id', n.id, 'session_id', n.session_id, 'status', n.status,
             'updated_at', date_part('epoch', n.updated_at),
             'has_response', n.response IS NOT NULL, 'has_error', n.error IS NOT NULL,
             'sequence_number', n.sequence_number)
         END
    FROM (
      SELECT CASE WHEN told.old THEN o.session_id ELSE n.session_id END AS session_id,
             CASE
               WHEN told.old THEN CASE WHEN n.id IS NULL OR n.session_id <> o.session_id THEN 'request.deleted' END
               WHEN n.id IS NULL THEN NULL
               WHEN o.id IS NULL OR (n.session_id, n.status, n.response COLLATE "C", n.error COLLATE "C")
                     IS DISTINCT FROM (o.session_id, o.status, o.response COLLATE "C", o.error COLLATE "C") THEN 'request_update'
             END AS type
        FROM (VALUES (true), (false)) AS told (old)
      OFFSET 0
    ) e
   WHERE e.type IS NOT NULL;
END
