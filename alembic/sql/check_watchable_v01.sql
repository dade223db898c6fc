-- One clear line for what cannot be watched.
CREATE OR REPLACE FUNCTION rowcast.check_watchable(target regclass) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  t record;
  other regclass;
BEGIN
  SELECT c.relkind AS kind, c.relpersistence AS persistence, c.relispartition AS partition, n.nspname AS namespace INTO t
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = target;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'there is no such table' USING ERRCODE = '42P01';
  ELSIF t.kind NOT IN ('r', 'p') THEN
    RAISE EXCEPTION '% is %: only tables can be watched, so watch those that it reads', target,
      CASE t.kind WHEN 'v' THEN 'a view' WHEN 'm' THEN 'a materialized view' WHEN 'f' THEN 'a foreign table' ELSE 'no table' END
      USING ERRCODE = '42809';
  ELSIF t.persistence = 't' THEN
    RAISE EXCEPTION '% is temporary: what only its session sees cannot be watched', target USING ERRCODE = '42809';
  ELSIF t.namespace IN ('rowcast', 'pg_catalog', 'information_schema', 'pg_toast') THEN
    RAISE EXCEPTION '% belongs to %: watch a table of your own', target,
      CASE t.namespace WHEN 'rowcast' THEN 'Rowcast' ELSE 'PostgreSQL' END USING ERRCODE = '42809';
  ELSIF t.partition THEN
    RAISE EXCEPTION '% is a partition: watch % as a whole', target,
      (SELECT i.inhparent::regclass FROM pg_inherits i WHERE i.inhrelid = target) USING ERRCODE = '42809';
  END IF;
  SELECT g.tgrelid INTO other FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
   WHERE g.tgrelid = target AND p.pronamespace = 'rowcast'::regnamespace AND starts_with(p.proname, 'capture_');
  IF FOUND THEN
    RAISE EXCEPTION '% is captured already: its events are in docs/events.md', target USING ERRCODE = '42710';
  END IF;
  SELECT f.member INTO other FROM rowcast.family(target) f WHERE f.kind = 'f';
  IF FOUND THEN
    RAISE EXCEPTION 'its partition % is a foreign table: PostgreSQL cannot tell what is written there', other USING ERRCODE = '42809';
  END IF;
  SELECT f.member INTO other FROM rowcast.family(target) f JOIN pg_class c ON c.oid = f.member
   WHERE NOT pg_has_role(c.relowner, 'USAGE');
  IF FOUND THEN
    RAISE EXCEPTION 'only the owner of % can watch it: do so as %', other,
      (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = other) USING ERRCODE = '42501';
  END IF;
END
$$
