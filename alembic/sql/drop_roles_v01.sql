-- The last database of the cluster that goes takes the roles with it.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['rowcast_owner', 'rowcast_hub'] LOOP
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA rowcast FROM %I', name);
    EXECUTE format('REVOKE ALL ON SCHEMA rowcast FROM %I', name);
    BEGIN
      EXECUTE format('DROP ROLE IF EXISTS %I', name);
    EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN NULL;
    END;
  END LOOP;
END
$$
