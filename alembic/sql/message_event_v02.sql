-- What a change of one message is told as. (o, NULL) is a deletion, (NULL, n) a creation; a row that moves is
-- deleted for those who followed it where it was, created for those where it is, and changed for the rest.
-- The planner inlines it into the capture's one INSERT. BEGIN ATOMIC binds it to the columns themselves: it
-- follows a rename, and PostgreSQL refuses to drop a column that it reads, where a text body would fail in
-- the writer's transaction.
CREATE OR REPLACE FUNCTION rowcast.message_event(o public.message, n public.message, at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, request_id text, user_id text, channel text, type text, payload jsonb)
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT e.session_id::text,
         session.project_id,
         e.job_id::text,
         NULL::text,
         session.owner_id,
         NULL::text,
         e.type,
         CASE e.type
           WHEN 'message.delta' THEN
             jsonb_build_object('message_id', n.id, 'offset', length(o.text), 'delta', rowcast.fit(substr(n.text, length(o.text) + 1)), 'timestamp', at)
           WHEN 'message.deleted' THEN
             jsonb_build_object('message', jsonb_build_object('id', o.id, 'session_id', o.session_id, 'job_id', o.job_id), 'timestamp', at)
           ELSE
             jsonb_build_object(
               'message', rowcast.message_noun(n)
                 || CASE WHEN e.grew THEN '{}' ELSE jsonb_build_object('text', rowcast.fit(n.text)) END,
               'timestamp', at)
             || CASE WHEN e.grew AND octet_length(n.text) > octet_length(o.text)
                     THEN jsonb_build_object('offset', length(o.text), 'delta', rowcast.fit(substr(n.text, length(o.text) + 1))) ELSE '{}' END
             || CASE WHEN e.type = 'message.failed' THEN jsonb_build_object('errorMessage', rowcast.fit(n.metadata -> 'error')) ELSE '{}' END
         END
    FROM (
      SELECT CASE told.who WHEN 'left' THEN CASE WHEN c.session THEN o.session_id END
                           WHEN 'kept' THEN CASE WHEN NOT c.session THEN n.session_id END
                           ELSE CASE WHEN c.session THEN n.session_id END END AS session_id,
             CASE told.who WHEN 'left' THEN CASE WHEN c.job THEN o.job_id END
                           WHEN 'kept' THEN CASE WHEN NOT c.job THEN n.job_id END
                           ELSE CASE WHEN c.job THEN n.job_id END END AS job_id,
             told.who = 'kept' AND c.grew AS grew,
             CASE told.who
               WHEN 'left' THEN
                 CASE WHEN c.session AND o.session_id IS NOT NULL OR c.job AND o.job_id IS NOT NULL THEN 'message.deleted' END
               WHEN 'kept' THEN CASE
                 WHEN o.id IS NULL OR n.id IS NULL OR c.session AND (c.job OR n.job_id IS NULL) THEN NULL
                 WHEN n.status <> o.status AND n.status IN ('completed', 'failed') THEN 'message.' || n.status
                 WHEN NOT c.grew OR c.session OR c.job
                      OR (n.role, n.status, n.metadata) IS DISTINCT FROM (o.role, o.status, o.metadata) THEN 'message.updated'
                 WHEN octet_length(n.text) > octet_length(o.text) THEN 'message.delta'
               END
               ELSE
                 CASE WHEN c.session AND n.session_id IS NOT NULL OR c.job AND n.job_id IS NOT NULL THEN 'agent.message.appended' END
             END AS type
        FROM (VALUES ('left'), ('kept'), ('joined')) AS told (who),
             (SELECT n.session_id IS DISTINCT FROM o.session_id AS session,
                     n.job_id IS DISTINCT FROM o.job_id AS job,
                     starts_with(n.text COLLATE "C", o.text COLLATE "C") AS grew) c
      OFFSET 0 -- a fence: the type is worked out once, not wherever it is read
    ) e
    LEFT JOIN LATERAL (
      SELECT s.project_id::text, s.owner_id FROM public.session s WHERE s.id = e.session_id
       LIMIT 1 -- a fence: looked up by key, never by joining whole tables
    ) session ON true
   WHERE e.type IS NOT NULL;
END
