-- One write of request_write, which waits for the row, and an error where it is not done.
CREATE OR REPLACE FUNCTION rowcast.change_request(write jsonb) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT FROM public.request q WHERE q.id = (write ->> 'id')::uuid FOR NO KEY UPDATE;
  SELECT rowcast.settled('request', w.id, w.outcome, (SELECT q.status FROM public.request q WHERE q.id = w.id))
    FROM rowcast.request_write(jsonb_build_array(write)) w;
END
