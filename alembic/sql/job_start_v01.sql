-- Begins a job under a lease, or takes one that is there and nobody holds, as message_start does messages.
CREATE OR REPLACE FUNCTION rowcast.job_start(
  kind text DEFAULT 'task', session_id uuid DEFAULT NULL, project_id uuid DEFAULT NULL, name text DEFAULT NULL,
  lease interval DEFAULT '30 seconds', id uuid DEFAULT gen_random_uuid(), fence uuid DEFAULT gen_random_uuid())
RETURNS TABLE (id uuid, fence uuid, cancel_requested boolean)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off';
  SELECT rowcast.refuse('22023', 'a job begins with an id and a fence: leave them out, or give them') WHERE job_start.id IS NULL OR job_start.fence IS NULL;
  INSERT INTO public.job (id, kind, session_id, project_id, name, status, fence, lease_expires_at)
  SELECT job_start.id, job_start.kind, job_start.session_id, job_start.project_id, job_start.name, 'running', job_start.fence, clock_timestamp() + lease
   WHERE NOT EXISTS (SELECT FROM public.job j WHERE j.id = job_start.id)
  ON CONFLICT (id) DO NOTHING;
  SELECT FROM public.job j WHERE j.id = job_start.id AND j.fence IS DISTINCT FROM job_start.fence FOR NO KEY UPDATE;
  UPDATE public.job j
     SET status = CASE j.status WHEN 'pending' THEN 'running' ELSE j.status END,
         fence = job_start.fence, revision = NULL, lease_expires_at = clock_timestamp() + lease,
         session_id = coalesce(job_start.session_id, j.session_id), project_id = coalesce(job_start.project_id, j.project_id),
         name = coalesce(job_start.name, j.name)
   WHERE j.id = job_start.id AND j.fence IS DISTINCT FROM job_start.fence AND j.kind = job_start.kind
     AND j.status IN ('pending', 'running', 'processing') AND (j.lease_expires_at < clock_timestamp()) IS NOT FALSE;
  UPDATE public.job j SET lease_expires_at = clock_timestamp() + lease
   WHERE j.id = job_start.id AND j.fence = job_start.fence
     AND j.lease_expires_at IS DISTINCT FROM rowcast.renewed(j.lease_expires_at, lease, clock_timestamp());
  SELECT CASE
           WHEN j.id IS NULL THEN rowcast.refuse('RC010', format('job %s: there is none', job_start.id))
           WHEN j.status NOT IN ('pending', 'running', 'processing') THEN rowcast.refuse('RC013', format('job %s: it is %s already', j.id, j.status))
           WHEN j.kind <> job_start.kind THEN rowcast.refuse('RC012', format('job %s: it is of the kind %s, not %s', j.id, j.kind, job_start.kind))
           ELSE rowcast.refuse('RC012', format('job %s: another writer holds it until %s', j.id, j.lease_expires_at))
         END
    FROM (VALUES (true)) AS one (row) LEFT JOIN public.job j ON j.id = job_start.id
   WHERE j.fence IS DISTINCT FROM job_start.fence;
  SELECT j.id, j.fence, j.cancel_requested_at IS NOT NULL FROM public.job j WHERE j.id = job_start.id;
END
