-- The text that an event carries: null above 16 MB, for jsonb ends at 256 MB and capture must
-- not fail by size. A reader that sees null reads the row.
CREATE OR REPLACE FUNCTION rowcast.fit(t text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN octet_length(t) <= 16777216 THEN t END
$$
