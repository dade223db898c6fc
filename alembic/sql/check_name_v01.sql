-- One clear line for a name that events cannot have.
CREATE OR REPLACE FUNCTION rowcast.check_name(name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF name !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' OR length(name) > 100 THEN
    RAISE EXCEPTION 'the name % is no good for events: give one with name =>, of letters, digits, _, - and dots between, at most 100',
      quote_literal(left(name, 120)) USING ERRCODE = '22023';
  ELSIF split_part(name, '.', 1) IN ('request', 'job', 'job_step', 'message', 'ingest', 'agent', 'workflow', 'task') OR rowcast.is_frame(name) THEN
    RAISE EXCEPTION 'events that begin with % are others already: give another name with name =>', name USING ERRCODE = '22023';
  END IF;
END
$$
