-- What the n-th of these sessions, projects, jobs and requests belongs to, and what that is to a user: whether the
-- session's owner is theirs, and whether they are a member of the project. A job's project is its own, or else its
-- session's; a member of either is a member. No row for what is not there, and for other kinds.
CREATE OR REPLACE FUNCTION rowcast.belongings(subject text, kinds text[], ids text[])
RETURNS TABLE (n integer, session_id text, project_id text, owned boolean, member boolean)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET enable_seqscan = off
SET jit = off
SET row_security = on
BEGIN ATOMIC
  SELECT asked.n::integer, found.session_id::text, coalesce(found.project_id, session.project_id)::text,
         coalesce(session.owner_id COLLATE "C" = subject, false),
         EXISTS (SELECT FROM public.project_member m WHERE m.user_id = subject AND m.project_id IN (found.project_id, session.project_id))
    FROM unnest(kinds, ids) WITH ORDINALITY AS asked (kind, id, n)
    CROSS JOIN LATERAL (
      SELECT s.id AS session_id, NULL::uuid AS project_id FROM public.session s WHERE asked.kind = 'session' AND s.id = rowcast.as_uuid(asked.id)
      UNION ALL
      SELECT NULL, p.id FROM public.project p WHERE asked.kind = 'project' AND p.id = rowcast.as_uuid(asked.id)
      UNION ALL
      SELECT j.session_id, j.project_id FROM public.job j WHERE asked.kind = 'job' AND j.id = rowcast.as_uuid(asked.id)
      UNION ALL
      SELECT r.session_id, NULL FROM public.request r WHERE asked.kind = 'request' AND r.id = rowcast.as_uuid(asked.id)
       LIMIT 1 -- a fence: looked up by key, never by joining whole tables
    ) found
    LEFT JOIN LATERAL (
      SELECT s.owner_id, s.project_id FROM public.session s WHERE s.id = found.session_id LIMIT 1
    ) session ON true
   ORDER BY asked.n;
END
