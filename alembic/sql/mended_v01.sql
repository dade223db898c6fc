-- A row that to_jsonb() refuses, column by column, and without the casts of users' own types if need be: U+0000 and lone surrogates, which json columns may hold and jsonb
-- may not, become U+FFFD; of a value that no jsonb can hold its checksum is left, so that a change of it is still seen.
-- U+0001 to U+0003 stand for what must stay meanwhile: no JSON holds them as they are.
CREATE OR REPLACE FUNCTION rowcast.mended(r record, target oid) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  line text;
  picture jsonb := '{}';
  k text;
  v json;
BEGIN
  BEGIN
    line := row_to_json(r)::text;
  EXCEPTION WHEN OTHERS THEN -- a cast may have failed
    line := rowcast.uncast(r, target);
  END;
  IF strpos(line, E'\\u') > 0 THEN -- or a long text would be too long for what follows
    line := replace(line, E'\\\\', E'\x01');
    line := regexp_replace(line, E'\\\\u(d[89ab][0-9a-f]{2})\\\\u(d[c-f][0-9a-f]{2})', E'\x02\\1\x03\\2', 'gi');
    line := regexp_replace(line, E'\\\\u(0000|d[89a-f][0-9a-f]{2})', E'\\\\ufffd', 'gi');
    line := replace(replace(replace(line, E'\x03', E'\\u'), E'\x02', E'\\u'), E'\x01', E'\\\\');
  END IF;
  FOR k, v IN SELECT j.key, j.value FROM json_each(line::json) j LOOP
    BEGIN
      picture := picture || jsonb_build_object(k, v);
    EXCEPTION WHEN OTHERS THEN
      picture := picture || jsonb_build_object(k, jsonb_build_object('omitted', md5(v::text)));
    END;
  END LOOP;
  RETURN picture;
EXCEPTION WHEN OTHERS THEN
  RETURN '{"omitted": true}';
END
$$
