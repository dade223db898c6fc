-- When a lease is to run out: renewed only once less than two thirds of it are left. Its column is indexed, so writing it
-- each time would cost each append its HOT update. A row without a lease gets none.
CREATE OR REPLACE FUNCTION rowcast.renewed(expires_at timestamptz, lease interval, at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN CASE WHEN expires_at < at + lease * 2 / 3 THEN at + lease ELSE expires_at END
