-- The same for jsonb: `#>` returns it as it is in memory, of which pg_column_size is the true size.
CREATE OR REPLACE FUNCTION rowcast.fit(j jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN pg_column_size(j #> '{}') <= 16777216 THEN j END
$$
