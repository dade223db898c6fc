-- Whether pg_notify takes it for a channel, and it is not one of ours.
CREATE OR REPLACE FUNCTION rowcast.is_channel(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
  SELECT octet_length(name) BETWEEN 1 AND 63 AND NOT starts_with(name, 'rowcast')
$$
