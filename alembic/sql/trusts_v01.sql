-- Whether rows of this table may go through to_jsonb(). That runs the casts to json of users' own types (arrays and
-- composites are taken apart, domains looked through), and in capture they would run with our rights. So these types, and
-- the functions of their casts, must belong to those who have our rights anyway. Who owns what is asked, and not only what
-- casts there are: one may be made after we looked.
CREATE OR REPLACE FUNCTION rowcast.trusts(target oid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_hashjoin = off -- or catalogues are read whole
SET enable_mergejoin = off
AS $$
BEGIN
  RETURN NOT EXISTS (
    WITH RECURSIVE used (type) AS (
      SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND a.atttypid >= 16384
      UNION
      SELECT inner_type FROM used JOIN pg_type t ON t.oid = used.type CROSS JOIN LATERAL (
          SELECT t.typelem WHERE t.typelem <> 0
          UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
          UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0) AS i (inner_type)
       WHERE inner_type >= 16384
    )
    SELECT FROM used JOIN pg_type t ON t.oid = used.type
     WHERE t.typtype NOT IN ('c', 'd') AND t.typsubscript <> 'array_subscript_handler'::regproc
       AND (NOT pg_has_role(t.typowner, 'rowcast_owner', 'MEMBER')
            OR EXISTS (SELECT FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc
                        WHERE c.castsource = t.oid AND c.casttarget = 'json'::regtype AND NOT pg_has_role(p.proowner, 'rowcast_owner', 'MEMBER'))));
END
$$
