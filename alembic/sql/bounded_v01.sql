-- The payload that the log keeps: at most 32 MB as text. jsonb can hold what text cannot (its numbers may be long,
-- and control characters take six bytes); a row that nobody can read would stop everybody behind it.
CREATE OR REPLACE FUNCTION rowcast.bounded(payload jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
  IF pg_catalog.octet_length(payload::text) <= 33554432 THEN
    RETURN payload;
  END IF;
  RETURN '{"omitted": true}';
EXCEPTION WHEN program_limit_exceeded OR out_of_memory THEN
  RETURN '{"omitted": true}';
END
$$
