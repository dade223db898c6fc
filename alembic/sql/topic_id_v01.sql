-- An id that somebody can follow: 1 to 128 characters. Any other is told to nobody: an index takes no key of any
-- length, and one row that cannot be logged would stop all behind it.
CREATE OR REPLACE FUNCTION rowcast.topic_id(id text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN length(id) BETWEEN 1 AND 128 THEN id END
$$
