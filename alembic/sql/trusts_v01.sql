-- Whether a row of this table may become jsonb: that runs the casts to json which the owners of its types made, and in
-- capture they would run with our rights. Casts of those who have our rights anyway are none of that.
CREATE OR REPLACE FUNCTION rowcast.trusts(target oid) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
  SELECT NOT EXISTS (SELECT FROM pg_cast c JOIN pg_proc p ON p.oid = c.castfunc
                      WHERE c.oid >= 16384 AND c.casttarget = 'json'::regtype AND NOT pg_has_role(p.proowner, 'rowcast_owner', 'MEMBER'))
      OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND a.atttypid >= 16384)
$$
