-- The query that numbers the rows of a transition table and pictures them without users' casts, as capture does with them
-- elsewhere; of no rows where there is no such table.
CREATE OR REPLACE FUNCTION rowcast.pictures(target oid, operation text, rows text) RETURNS text
LANGUAGE sql STABLE
AS $$
  SELECT CASE
    WHEN operation = 'INSERT' AND rows = 'old_rows' OR operation = 'DELETE' AND rows = 'new_rows'
      THEN 'SELECT 0::bigint AS i, NULL::jsonb AS picture WHERE false'
    ELSE format('SELECT row_number() OVER () %s AS i, rowcast.picture(p.*, %s) AS picture FROM (SELECT %s FROM %I s) p',
                CASE WHEN operation = 'UPDATE' AND rows = 'new_rows'
                     THEN '+ CASE WHEN (SELECT count(*) FROM old_rows) = (SELECT count(*) FROM new_rows) THEN 0 ELSE 1000000000000 END' END,
                target, rowcast.uncast_columns(target), rows) END
$$
