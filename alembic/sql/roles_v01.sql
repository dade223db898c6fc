-- rowcast_owner owns the log and its functions and nothing else; rowcast_hub may sequence and read.
-- Roles are of the whole cluster: another database, or an administrator, may have created them.
DO $$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['rowcast_owner', 'rowcast_hub'] LOOP
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) THEN
      BEGIN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
        WHEN insufficient_privilege THEN
          RAISE insufficient_privilege USING MESSAGE =
            format('role %I is missing and %I may not create roles: have an administrator run CREATE ROLE %I NOLOGIN; GRANT %I TO %I', name, current_user, name, name, current_user);
      END;
    END IF;
    -- Whoever migrates hands objects to the owner, and usually is the hub as well.
    IF NOT pg_has_role(current_user, name, 'USAGE') THEN
      EXECUTE format('GRANT %I TO %I', name, current_user);
    END IF;
  END LOOP;
END
$$
