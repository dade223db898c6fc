-- A row of this table as jsonb, whatever is in it: a failure here must not become the writer's. Guarded a row at a time, and
-- without a write inside, so that it takes no transaction id.
CREATE OR REPLACE FUNCTION rowcast.picture(r record, trusted boolean, target oid) RETURNS jsonb
LANGUAGE plpgsql STABLE COST 1
AS $$
BEGIN
  RETURN CASE WHEN trusted THEN to_jsonb(r) ELSE rowcast.uncast(r, target)::jsonb END;
EXCEPTION WHEN OTHERS THEN
  RETURN rowcast.mended(r, trusted, target);
END
$$
