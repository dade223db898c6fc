-- One clear line for columns that a table does not have.
CREATE OR REPLACE FUNCTION rowcast.check_columns(target regclass, columns text[], audience text[]) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  wanted text[] := array_remove(audience, NULL);
  col text;
BEGIN
  IF coalesce(cardinality(columns), 0) = 0 OR array_ndims(columns) > 1 OR array_position(columns, NULL) IS NOT NULL THEN
    RAISE EXCEPTION 'columns is empty or no plain list: name those to watch, or say ARRAY[''*''] for all' USING ERRCODE = '22023';
  ELSIF '*' = ANY (columns) AND cardinality(columns) > 1 THEN
    RAISE EXCEPTION 'columns: * is all of them, and stands alone' USING ERRCODE = '22023';
  ELSIF columns <> '{*}' THEN
    wanted := wanted || columns;
  END IF;
  FOREACH col IN ARRAY wanted LOOP
    IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = col AND a.attnum > 0 AND NOT a.attisdropped) THEN
      RAISE EXCEPTION '% has no column %: it has %', target, quote_ident(col),
        (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
          WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped) USING ERRCODE = '42703';
    ELSIF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = col AND a.attgenerated = 'v') THEN
      RAISE EXCEPTION 'column % of % is generated when it is read (VIRTUAL): triggers do not see it', quote_ident(col), target
        USING ERRCODE = '0A000';
    END IF;
  END LOOP;
END
$$
