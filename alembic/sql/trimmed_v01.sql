-- What an event carries of a row of more than 16 MB: its smallest columns up to there; the others are null, as where
-- rowcast.fit() is used, and so are those that are nested too deep for it.
CREATE OR REPLACE FUNCTION rowcast.trimmed(picture jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN rowcast.fit(picture) IS NOT NULL THEN picture ELSE (
    SELECT jsonb_object_agg(c.key, CASE WHEN c.total <= 16777216 THEN c.value ELSE 'null' END)
      FROM (SELECT f.key, f.value, sum(pg_column_size(f.value)) OVER (ORDER BY pg_column_size(f.value), f.key) AS total
              FROM (SELECT j.key, rowcast.fit(j.value) AS value FROM jsonb_each(picture) j OFFSET 0) f) c) END
$$
