-- Turns an INSERT, UPDATE or DELETE on {table} into outbox rows, and rings the doorbell once. One text for all captured tables.
-- SECURITY DEFINER: a writer needs rights on its own table and nothing else. `n.*` and `change.at` are
-- what they are also where the table has columns named n and at.
CREATE OR REPLACE FUNCTION rowcast.capture_{table}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET enable_seqscan = off -- or a plan made when session was small stays
SET jit = off
SET row_security = on -- a policy of our own lets us look; where this is off, a policy is an error
AS $$
<<change>>
DECLARE
  at CONSTANT timestamptz := clock_timestamp();
BEGIN
  CASE TG_OP
  WHEN 'INSERT' THEN
    INSERT INTO rowcast.outbox (session_id, project_id, job_id, request_id, user_id, channel, type, payload)
    SELECT e.* FROM new_rows n, rowcast.{table}_event(NULL, n.*, change.at) e;
  WHEN 'UPDATE' THEN
    {often}
    IF NOT FOUND THEN
      -- FULL: a row whose id changes is deleted, then created.
      INSERT INTO rowcast.outbox (session_id, project_id, job_id, request_id, user_id, channel, type, payload)
      SELECT e.* FROM old_rows o FULL JOIN new_rows n ON n.id = o.id, rowcast.{table}_event(o.*, n.*, change.at) e;
    END IF;
  WHEN 'DELETE' THEN
    INSERT INTO rowcast.outbox (session_id, project_id, job_id, request_id, user_id, channel, type, payload)
    SELECT e.* FROM old_rows o, rowcast.{table}_event(o.*, NULL, change.at) e;
  END CASE;
  IF FOUND THEN
    PERFORM rowcast.ring();
  END IF;
  RETURN NULL;
END
$$
