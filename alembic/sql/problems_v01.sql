-- What keeps changes of a watched table from being told, one line each.
CREATE OR REPLACE FUNCTION rowcast.problems(target regclass, tgargs bytea) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
  WITH watch AS (
    SELECT rowcast.arguments(tgargs) AS a
  ), col AS (
    SELECT x.attname::text AS name, x.attnum, x.attgenerated FROM pg_attribute x WHERE x.attrelid = target AND x.attnum > 0 AND NOT x.attisdropped
  ), problem AS (
    SELECT 1 AS i, format('column %I is gone', wanted) AS line
      FROM watch, unnest(a[3:6] || a[7]::text[] || a[8]::text[]) AS wanted
     WHERE wanted NOT IN ('', '*') AND NOT EXISTS (SELECT FROM col WHERE col.name = wanted)
    UNION
    SELECT 2, format('its primary key is another since: watch it again') FROM watch
     WHERE a[7]::text[] <> coalesce((SELECT array_agg(col.name ORDER BY array_position(i.indkey::int2[], col.attnum))
                                       FROM pg_index i JOIN col ON col.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                                      WHERE i.indrelid = target AND i.indisprimary), '{}')
    UNION
    SELECT 3, format('column %I is generated when it is read, and null in events: watch it again', col.name) FROM watch, col
     WHERE col.attgenerated = 'v' AND a[8] = '{*}' AND col.name <> ALL (a[9]::text[])
    UNION
    SELECT 4, CASE WHEN f.kind = 'f' THEN format('partition %s is a foreign table: writes to it fail', f.member)
                   WHEN f.member <> target AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = f.member AND g.tgfoid = 'rowcast.capture()'::regprocedure)
                     THEN format('%s has no triggers: watch it again', f.member)
                   WHEN g.oid IS NULL THEN format('%s.rowcast_%s is missing: watch it again', f.member, k.kind)
                   WHEN g.tgargs <> problems.tgargs THEN format('%s is watched in another way: watch it again', f.member)
                   WHEN g.tgenabled NOT IN ('O', 'A') THEN format('%s.rowcast_%s is disabled', f.member, k.kind) END
      FROM rowcast.family(target) f
     CROSS JOIN unnest(ARRAY['insert', 'update', 'delete', 'truncate']) AS k (kind)
      LEFT JOIN pg_trigger g ON g.tgrelid = f.member AND g.tgname = 'rowcast_' || k.kind AND g.tgfoid = 'rowcast.capture()'::regprocedure
    UNION
    SELECT 4, format('%s.%s is a trigger too many: watch it again', f.member, quote_ident(g.tgname))
      FROM rowcast.family(target) f JOIN pg_trigger g ON g.tgrelid = f.member
     WHERE g.tgfoid = 'rowcast.capture()'::regprocedure AND g.tgname <> ALL ('{rowcast_insert,rowcast_update,rowcast_delete,rowcast_truncate}')
  )
  SELECT coalesce(array_agg(p.line ORDER BY p.i, p.line), '{}') FROM problem p WHERE p.line IS NOT NULL
$$
