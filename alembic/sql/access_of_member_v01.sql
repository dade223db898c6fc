-- Whom it may concern that this membership is another, or is gone. Cut: no length fails a write.
CREATE OR REPLACE FUNCTION rowcast.access_of(o public.project_member) RETURNS text
LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT 'user:' || left(o.user_id, 200);
END
