-- A table, and all that inherit from it: its partitions, and theirs.
CREATE OR REPLACE FUNCTION rowcast.family(target regclass) RETURNS TABLE (member regclass, kind "char")
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
  WITH RECURSIVE family AS (
    SELECT target::oid AS member, 0 AS depth
    UNION
    SELECT i.inhrelid, f.depth + 1 FROM family f JOIN pg_inherits i ON i.inhparent = f.member
  )
  SELECT c.oid, c.relkind FROM family f JOIN pg_class c ON c.oid = f.member GROUP BY c.oid, c.relkind ORDER BY min(f.depth), c.oid
$$
