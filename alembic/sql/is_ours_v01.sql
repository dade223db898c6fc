-- Whether a row stands where it was written. The transaction id that it stores is its xmin, unless
-- it came by dump and restore; the database is its own, unless that was copied as a template.
CREATE OR REPLACE FUNCTION rowcast.is_ours(xmin xid, stamp xid8, database oid) RETURNS boolean
LANGUAGE sql STABLE
AS $$
  SELECT xmin = stamp::xid AND database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
$$
