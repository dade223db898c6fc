-- A row of this table as jsonb, whatever is in it: a failure here must not become the writer's. Guarded a row at a time, and
-- without a write inside, so that it takes no transaction id.
CREATE OR REPLACE FUNCTION rowcast.picture(r record, target oid) RETURNS jsonb
LANGUAGE plpgsql STABLE COST 1
AS $$
BEGIN
  RETURN to_jsonb(r);
EXCEPTION WHEN OTHERS THEN
  RETURN rowcast.mended(r, target);
END
$$
