-- What a change of one request is told as; see message_event.
CREATE OR REPLACE FUNCTION rowcast.request_event(o public.request, n public.request, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, request_id text, user_id text, channel text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT e.session_id::text,
         session.project_id,
         NULL::text,
         CASE WHEN e.type = 'request_update' THEN n.id WHEN n.id IS NULL THEN o.id END::text,
         session.owner_id,
         CASE e.type WHEN 'request_update' THEN 'request_update' END,
         e.type,
         CASE e.type
           WHEN 'request.deleted' THEN jsonb_build_object('request_id', o.id, 'session_id', o.session_id, 'timestamp', at)
           ELSE rowcast.request_noun(n)
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
    LEFT JOIN LATERAL (
      SELECT s.project_id::text, s.owner_id FROM public.session s WHERE s.id = e.session_id
       LIMIT 1 -- a fence: looked up by key, never by joining whole tables
    ) session ON true
   WHERE e.type IS NOT NULL;
END
