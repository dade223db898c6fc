-- A row of this table as JSON, see uncast_columns.
CREATE OR REPLACE FUNCTION rowcast.uncast(r record, target oid) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  line text;
BEGIN
  EXECUTE (
    SELECT format('SELECT row_to_json(p.*)::text FROM (SELECT %s FROM rowcast.same($1) AS s (%s)) p', rowcast.uncast_columns(target),
                  string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum))
      FROM pg_attribute a WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped) INTO line USING r;
  RETURN line;
END
$$
