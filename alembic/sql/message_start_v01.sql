-- Begins a message under a lease, or takes one that is there and nobody holds: then its text, its role and what is not
-- given stay, and its revisions begin anew. The same fence again is a retry. Waits for whoever has the row.
-- Errors: RC010 to RC013, see docs/schema.md.
CREATE OR REPLACE FUNCTION rowcast.message_start(
  session_id uuid, text text DEFAULT '', job_id uuid DEFAULT NULL, role text DEFAULT 'assistant', metadata jsonb DEFAULT '{}',
  lease interval DEFAULT '30 seconds', id uuid DEFAULT gen_random_uuid(), fence uuid DEFAULT gen_random_uuid())
RETURNS TABLE (id uuid, fence uuid, length bigint)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
  SELECT rowcast.refuse('22023', 'a message begins with an id and a fence: leave them out, or give them') WHERE message_start.id IS NULL OR message_start.fence IS NULL;
  INSERT INTO public.message (id, session_id, job_id, role, status, text, metadata, fence, lease_expires_at)
  SELECT message_start.id, message_start.session_id, message_start.job_id, message_start.role, 'streaming',
         coalesce(message_start.text, ''), coalesce(message_start.metadata, '{}'), message_start.fence, clock_timestamp() + lease
   WHERE NOT EXISTS (SELECT FROM public.message m WHERE m.id = message_start.id)
  ON CONFLICT (id) DO NOTHING;
  SELECT FROM public.message m WHERE m.id = message_start.id AND m.fence IS DISTINCT FROM message_start.fence FOR NO KEY UPDATE;
  UPDATE public.message m
     SET status = 'streaming', fence = message_start.fence, revision = NULL, lease_expires_at = clock_timestamp() + lease,
         job_id = coalesce(message_start.job_id, m.job_id),
         metadata = CASE WHEN jsonb_typeof(m.metadata) = 'object' THEN m.metadata ELSE '{}' END || coalesce(message_start.metadata, '{}')
   WHERE m.id = message_start.id AND m.fence IS DISTINCT FROM message_start.fence
     AND m.session_id IS NOT DISTINCT FROM message_start.session_id -- not by an index on it: a session may have many
     AND m.status IN ('pending', 'streaming') AND (m.lease_expires_at < clock_timestamp()) IS NOT FALSE;
  UPDATE public.message m SET lease_expires_at = clock_timestamp() + lease -- a retry
   WHERE m.id = message_start.id AND m.fence = message_start.fence
     AND m.lease_expires_at IS DISTINCT FROM rowcast.renewed(m.lease_expires_at, lease, clock_timestamp());
  SELECT CASE
           WHEN m.id IS NULL THEN rowcast.refuse('RC010', format('message %s: there is none', message_start.id))
           WHEN m.status NOT IN ('pending', 'streaming') THEN rowcast.refuse('RC013', format('message %s: it is %s already', m.id, m.status))
           WHEN m.session_id IS DISTINCT FROM message_start.session_id THEN
             rowcast.refuse('RC012', format('message %s: it is in another session, %s', m.id, m.session_id))
           ELSE rowcast.refuse('RC012', format('message %s: another writer holds it until %s', m.id, m.lease_expires_at))
         END
    FROM (VALUES (true)) AS one (row) LEFT JOIN public.message m ON m.id = message_start.id
   WHERE m.fence IS DISTINCT FROM message_start.fence;
  SELECT m.id, m.fence, length(m.text)::bigint FROM public.message m WHERE m.id = message_start.id;
END
