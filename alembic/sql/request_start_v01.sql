-- Begins a request under a lease, or takes one that is there and nobody holds, as message_start does messages. To take one,
-- its session need not be known.
CREATE OR REPLACE FUNCTION rowcast.request_start(
  session_id uuid DEFAULT NULL, request text DEFAULT NULL, lease interval DEFAULT '30 seconds',
  id uuid DEFAULT gen_random_uuid(), fence uuid DEFAULT gen_random_uuid())
RETURNS TABLE (id uuid, fence uuid)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
  SELECT rowcast.refuse('22023', 'a request begins with an id and a fence: leave them out, or give them') WHERE request_start.id IS NULL OR request_start.fence IS NULL;
  INSERT INTO public.request (id, session_id, request, status, fence, lease_expires_at)
  SELECT request_start.id, request_start.session_id, request_start.request, 'in_progress', request_start.fence, clock_timestamp() + lease
   WHERE request_start.session_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.request q WHERE q.id = request_start.id)
  ON CONFLICT (id) DO NOTHING;
  SELECT FROM public.request q WHERE q.id = request_start.id AND q.fence IS DISTINCT FROM request_start.fence FOR NO KEY UPDATE;
  UPDATE public.request q
     SET status = 'in_progress', fence = request_start.fence, lease_expires_at = clock_timestamp() + lease,
         request = coalesce(request_start.request, q.request)
   WHERE q.id = request_start.id AND q.fence IS DISTINCT FROM request_start.fence
     AND q.session_id = coalesce(request_start.session_id, q.session_id)
     AND q.status IN ('pending', 'in_progress') AND (q.lease_expires_at < clock_timestamp()) IS NOT FALSE;
  UPDATE public.request q SET lease_expires_at = clock_timestamp() + lease
   WHERE q.id = request_start.id AND q.fence = request_start.fence
     AND q.lease_expires_at IS DISTINCT FROM rowcast.renewed(q.lease_expires_at, lease, clock_timestamp());
  SELECT CASE
           WHEN q.id IS NULL THEN rowcast.refuse('RC010', format('request %s: there is none, and without a session none is made', request_start.id))
           WHEN q.status NOT IN ('pending', 'in_progress') THEN rowcast.refuse('RC013', format('request %s: it is %s already', q.id, q.status))
           WHEN q.session_id <> request_start.session_id THEN
             rowcast.refuse('RC012', format('request %s: it is in another session, %s', q.id, q.session_id))
           ELSE rowcast.refuse('RC012', format('request %s: another writer holds it until %s', q.id, q.lease_expires_at))
         END
    FROM (VALUES (true)) AS one (row) LEFT JOIN public.request q ON q.id = request_start.id
   WHERE q.fence IS DISTINCT FROM request_start.fence;
  SELECT q.id, q.fence FROM public.request q WHERE q.id = request_start.id;
END
