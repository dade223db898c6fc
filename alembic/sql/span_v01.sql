-- How many transaction ids lie between the ends of two snapshots.
CREATE OR REPLACE FUNCTION rowcast.span(low pg_snapshot, high pg_snapshot) RETURNS bigint
LANGUAGE sql IMMUTABLE
AS $$
  SELECT pg_catalog.pg_snapshot_xmax(high)::text::bigint - pg_catalog.pg_snapshot_xmax(low)::text::bigint
$$
