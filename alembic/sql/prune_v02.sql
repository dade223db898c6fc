-- Deletes what is no longer needed: outbox rows that have their position, old heads, and events
-- older than `keep`, at most `max_rows` of these, oldest first. The floor is the last position pruned.
-- Returns how many events went; call it again while that is `max_rows`.
CREATE OR REPLACE FUNCTION rowcast.prune(keep interval, max_rows integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
  head rowcast.head;
  past rowcast.pruned;
  upto bigint;
  n integer := 0;
  running xid8;
BEGIN
  IF NOT pg_try_advisory_xact_lock(7499639, 4) THEN
    RETURN 0;
  END IF;
  SELECT * INTO STRICT past FROM rowcast.pruned;
  SELECT * INTO STRICT head FROM rowcast.head h ORDER BY h.batch DESC LIMIT 1;

  IF head.low::text <> past.low::text THEN
    -- What `low` shows has its position; what the last prune's `low` showed is gone already.
    DELETE FROM rowcast.outbox o
     WHERE o.xid >= pg_snapshot_xmax(past.low) AND o.xid < pg_snapshot_xmax(head.low)
       AND pg_visible_in_snapshot(o.xid, head.low);
    FOR running IN SELECT pg_snapshot_xip(past.low) LOOP -- one by one: a join reads the whole outbox
      DELETE FROM rowcast.outbox o WHERE o.xid = running AND pg_visible_in_snapshot(o.xid, head.low);
    END LOOP;
    DELETE FROM rowcast.head h WHERE h.batch < head.batch;
  END IF;

  SELECT coalesce(min(e.position) FILTER (WHERE e.created_at >= now() - keep) - 1, max(e.position), past.floor) INTO upto
    FROM (SELECT position, created_at FROM rowcast.event WHERE position > past.floor ORDER BY position LIMIT max_rows) e;
  IF upto > past.floor THEN
    DELETE FROM rowcast.event WHERE position > past.floor AND position <= upto;
    GET DIAGNOSTICS n = ROW_COUNT;
  END IF;

  IF upto > past.floor OR head.low::text <> past.low::text THEN
    UPDATE rowcast.pruned SET floor = upto, low = head.low;
  END IF;
  RETURN n;
END
$$
