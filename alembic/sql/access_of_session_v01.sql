-- Whom it may concern that this session has another owner or project, or is gone. BEGIN ATOMIC: it follows a rename.
CREATE OR REPLACE FUNCTION rowcast.access_of(o public.session) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT 'session:' || o.id;
END
