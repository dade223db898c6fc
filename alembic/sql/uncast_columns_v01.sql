-- The columns of a row `s` of this table, to be selected without any cast that a user made: values of users' own types are
-- their text, arrays of them arrays of texts.
CREATE OR REPLACE FUNCTION rowcast.uncast_columns(target oid) RETURNS text
LANGUAGE sql STABLE
AS $$
  SELECT string_agg(format(CASE WHEN a.atttypid < 16384 OR t.typtype = 'd' AND t.typbasetype < 16384 THEN 's.%1$I'
                                ELSE 'CASE num_nonnulls(s.%1$I) WHEN 1 THEN format(''%%s'', s.%1$I)::%2$s END AS %1$I' END,
                           a.attname, CASE t.typsubscript WHEN 'array_subscript_handler'::regproc THEN 'text[]' ELSE 'text' END),
                    ', ' ORDER BY a.attnum)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
   WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped
$$
