-- The events after the position that a subscription has, in order. An unknown name begins at the floor, which is as
-- early as can be. Error 22000 when events after its position were pruned: they were missed, and somebody should know.
CREATE OR REPLACE FUNCTION rowcast.pending(name text, max_rows integer DEFAULT 500) RETURNS SETOF rowcast.event
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
  here bigint := (SELECT s.position FROM rowcast.subscription s WHERE s.name = pending.name);
  floor constant bigint := (SELECT p.floor FROM rowcast.pruned p);
BEGIN
  IF here < floor THEN
    RAISE EXCEPTION 'subscription % is at position %, and the log begins after %: events % to % were pruned before they were read',
      quote_literal(name), here, floor, here + 1, floor
      USING ERRCODE = 'data_exception', HINT = 'To go on from the oldest event there is: SELECT rowcast.forget(name).';
  END IF;
  RETURN QUERY SELECT e.* FROM rowcast.event e WHERE e.position > coalesce(here, floor) ORDER BY e.position LIMIT max_rows;
END
$$
