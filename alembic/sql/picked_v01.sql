-- These columns of a picture, or all but the hidden ones for {*}; those that it does not have are absent.
CREATE OR REPLACE FUNCTION rowcast.picked(picture jsonb, columns text[], hidden text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
  picked jsonb := '{}';
  col text;
BEGIN
  IF columns = '{*}' THEN
    RETURN picture - hidden;
  END IF;
  FOREACH col IN ARRAY columns LOOP
    IF picture ? col THEN
      picked := picked || jsonb_build_object(col, picture -> col);
    END IF;
  END LOOP;
  RETURN picked;
END
$$
