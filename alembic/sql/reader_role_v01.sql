-- rowcast_reader may read the log and keep its place in it. Roles are of the whole cluster: see roles.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rowcast_reader') THEN
    CREATE ROLE rowcast_reader NOLOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN
    RAISE insufficient_privilege USING MESSAGE =
      format('role rowcast_reader is missing and %I may not create roles: have an administrator run CREATE ROLE rowcast_reader NOLOGIN', current_user);
END
$$
