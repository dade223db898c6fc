-- What an event carries of a row of more than 16 MB: its smallest columns up to there; the others are null, as where
-- rowcast.fit() is used.
CREATE OR REPLACE FUNCTION rowcast.trimmed(picture jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN pg_column_size(picture) <= 16777216 THEN picture ELSE (
    SELECT jsonb_object_agg(c.key, CASE WHEN c.total <= 16777216 THEN c.value ELSE 'null' END)
      FROM (SELECT j.key, j.value, sum(pg_column_size(j.value)) OVER (ORDER BY pg_column_size(j.value), j.key) AS total
              FROM jsonb_each(picture) j) c) END
$$
