-- A row as it is: what a function returns can be given column names.
CREATE OR REPLACE FUNCTION rowcast.same(r record) RETURNS record
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
  RETURN r;
END
$$
