-- rowcast_writer may write rows through the functions that check fences and leases. Roles are of the whole cluster: see roles.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'rowcast_writer') THEN
    CREATE ROLE rowcast_writer NOLOGIN;
  END IF;
EXCEPTION
  WHEN duplicate_object OR unique_violation THEN NULL;
  WHEN insufficient_privilege THEN
    RAISE insufficient_privilege USING MESSAGE =
      format('role rowcast_writer is missing and %I may not create roles: have an administrator run CREATE ROLE rowcast_writer NOLOGIN', current_user);
END
$$
