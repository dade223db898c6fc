-- The writes themselves, or an error 22023: what is wrong in itself is a mistake of the program, and fails all of them
-- before anything is done. The same row twice is refused, since one statement changes a row only once, and to leave one
-- of two appends out would lose text. `keys` are those that each write must have.
CREATE OR REPLACE FUNCTION rowcast.check_writes(writes jsonb, statuses text[], keys text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  bad CONSTANT text := 'invalid_parameter_value';
  write jsonb;
BEGIN
  IF jsonb_typeof(writes) <> 'array' THEN
    RAISE EXCEPTION 'writes are an array of objects, and this is of type %', jsonb_typeof(writes) USING ERRCODE = bad;
  END IF;
  FOR write IN SELECT jsonb_array_elements(writes) LOOP
    IF jsonb_typeof(write) <> 'object' OR NOT jsonb_strip_nulls(write) ?& keys THEN
      RAISE EXCEPTION 'each write is an object with %, and this is none: %', array_to_string(keys, ' and '), left(write::text, 200) USING ERRCODE = bad;
    ELSIF write ->> 'status' <> ALL (statuses) THEN
      RAISE EXCEPTION '%: status % is none of %', write ->> 'id', write -> 'status', array_to_string(statuses, ', ') USING ERRCODE = bad;
    ELSIF (write ->> 'offset')::numeric < 0 THEN
      RAISE EXCEPTION '%: offset % is below 0', write ->> 'id', write ->> 'offset' USING ERRCODE = bad;
    ELSIF jsonb_typeof(write -> 'metadata') NOT IN ('object', 'null') THEN
      RAISE EXCEPTION '%: metadata is an object, and this is of type %', write ->> 'id', jsonb_typeof(write -> 'metadata') USING ERRCODE = bad;
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM jsonb_array_elements(writes) w GROUP BY (w ->> 'id')::uuid HAVING count(*) > 1) THEN
    RAISE EXCEPTION 'more than one write of the same id: give each row once' USING ERRCODE = bad;
  END IF;
  RETURN writes;
END
$$
