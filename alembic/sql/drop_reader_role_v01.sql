-- The last database of the cluster that goes takes the role with it.
DO $$
BEGIN
  REVOKE ALL ON ALL TABLES IN SCHEMA rowcast FROM rowcast_reader;
  REVOKE ALL ON SCHEMA rowcast FROM rowcast_reader;
  BEGIN
    DROP ROLE IF EXISTS rowcast_reader;
  EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
  END;
END
$$
