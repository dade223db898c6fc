-- The last database of the cluster that goes takes the role with it.
DO $$
BEGIN
  REVOKE ALL ON public.message, public.job, public.job_step, public.request FROM rowcast_writer;
  REVOKE ALL ON SCHEMA rowcast FROM rowcast_writer;
  BEGIN
    DROP ROLE IF EXISTS rowcast_writer;
  EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
  END;
END
$$
