-- The same for jsonb: `#>` returns it as it is in memory, of which pg_column_size is the true size. One that is nested deeper
-- than 200 is null as well, for readers of JSON give up somewhere; a level takes 8 bytes, so that a small value is not looked into.
CREATE OR REPLACE FUNCTION rowcast.fit(j jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN pg_column_size(j #> '{}') <= 1600 THEN j
              WHEN pg_column_size(j #> '{}') <= 16777216 AND NOT jsonb_path_exists(j, 'strict $.**{200}') THEN j END
$$
