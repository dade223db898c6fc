-- Gives outbox rows their positions: outbox -> event, and one notification each, or two where a channel is named.
-- Those with payloads go to a channel whose name only the hub's role can read: any role may LISTEN and NOTIFY on a
-- channel that it can name. The channel `rowcast`, which everybody can, hears once a call how far the log goes.
--
-- Takes the rows that are visible in the snapshot `high` and were not in `low`, each committed
-- change exactly once, whatever order transactions commit in. Call it again while `more` is true.
-- Errors: 25001 outside a READ COMMITTED transaction of its own, RC001 if this log is a copy that
-- rowcast.adopt() has not seen yet, P0002 if the head or the channel's name is gone.
--
-- Two scans of the primary key rather than one OR, and no other plan: a generic plan would lose the index.
CREATE OR REPLACE FUNCTION rowcast.sequence(max_rows integer, OUT n integer, OUT more boolean)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET jit = off
AS $$
DECLARE
  head rowcast.head;
  log record;
  bound pg_snapshot;
  last bigint;
  secret text;
  hint text;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'rowcast.sequence() needs a READ COMMITTED transaction of its own' USING ERRCODE = '25001';
  END IF;
  -- Before anything else: what follows must see all that the previous call committed.
  PERFORM pg_advisory_xact_lock(7499639, 3);

  SELECT e.epoch, rowcast.is_ours(e.xmin, e.stamp, e.database) AS ours INTO STRICT log
    FROM rowcast.epoch e ORDER BY e.id DESC LIMIT 1;
  IF NOT log.ours THEN
    RAISE EXCEPTION 'this log is a copy, to be taken over with rowcast.adopt()' USING ERRCODE = 'RC001';
  END IF;
  SELECT * INTO STRICT head FROM rowcast.head h ORDER BY h.batch DESC LIMIT 1;

  WITH bound AS MATERIALIZED (
    SELECT coalesce(head.high, pg_current_snapshot()) AS high
  ), due AS (
    SELECT o.* FROM bound, rowcast.outbox o
     WHERE o.xid >= pg_snapshot_xmax(head.low) AND o.xid < pg_snapshot_xmax(bound.high)
       AND pg_visible_in_snapshot(o.xid, bound.high) AND o.id > head.last_id
    UNION ALL
    SELECT o.* FROM bound, pg_snapshot_xip(head.low) AS running,
           LATERAL (SELECT * FROM rowcast.outbox WHERE xid = running OFFSET 0) o -- a fence: any other join reads the whole outbox
     WHERE pg_visible_in_snapshot(o.xid, bound.high) AND o.id > head.last_id
     ORDER BY id LIMIT max_rows
  ), logged AS (
    INSERT INTO rowcast.event (position, outbox_id, session_id, project_id, job_id, request_id, user_id, table_name, channel,
                               type, payload, created_at)
    SELECT head.position + row_number() OVER (ORDER BY id), id,
           rowcast.topic_id(session_id), rowcast.topic_id(project_id), rowcast.topic_id(job_id),
           rowcast.topic_id(request_id), rowcast.topic_id(user_id), rowcast.topic_id(table_name), channel,
           type, CASE WHEN pg_column_size(payload) < 500 THEN payload ELSE rowcast.bounded(payload) END, created_at
      FROM due
    RETURNING outbox_id
  )
  SELECT bound.high, (SELECT count(*) FROM logged), (SELECT max(outbox_id) FROM logged)
    INTO bound, n, last FROM bound;

  more := n = max_rows OR head.high IS NOT NULL;

  IF n > 0 THEN
    SELECT s.channel INTO STRICT secret FROM rowcast.secret s;
    hint := json_build_object('epoch', log.epoch, 'upto', head.position + n);
    IF n > 1000 OR pg_notification_queue_usage() > 0.25 THEN
      PERFORM pg_notify(secret, hint);
      PERFORM pg_notify(c.channel, json_build_object('upto', head.position + n)::text)
         FROM (SELECT DISTINCT channel FROM rowcast.event WHERE position > head.position AND rowcast.is_channel(channel)) c;
    ELSE
      PERFORM pg_notify(secret, rowcast.envelope(log.epoch, e)), CASE WHEN e.channel IS NOT NULL THEN rowcast.notify(e) END
         FROM (SELECT * FROM rowcast.event WHERE position > head.position ORDER BY position) e;
    END IF;
    PERFORM pg_notify('rowcast', hint);
  END IF;

  IF n = max_rows THEN
    INSERT INTO rowcast.head (position, low, high, last_id) VALUES (head.position + n, head.low, bound, last);
  ELSIF n > 0 OR head.high IS NOT NULL OR rowcast.span(head.low, bound) > 10000 THEN
    INSERT INTO rowcast.head (position, low, high, last_id) VALUES (head.position + n, bound, NULL, 0);
  ELSE
    RETURN;
  END IF;
  -- A SET on the function would be gone before the commit. What a client has seen, no crash may take back.
  PERFORM set_config('synchronous_commit', 'on', true);
END
$$
