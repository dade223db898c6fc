-- Whom a column names, as text; null for what nobody can follow: ids are 1 to 128 characters without control characters.
CREATE OR REPLACE FUNCTION rowcast.follower(picture jsonb, col text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
  SELECT CASE WHEN length(picture ->> col) BETWEEN 1 AND 128 AND picture ->> col !~ '[\x01-\x1f\x7f-\x9f\u2028\u2029]' THEN picture ->> col END
$$
