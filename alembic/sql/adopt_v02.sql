-- Makes this log the one of this database and timeline, and returns its epoch.
--
-- A copy (dump and restore, template): the transaction ids in it mean nothing here. Every outbox
-- row that the log does not hold yet gets a position, and all that came before gets a new epoch.
-- A promoted standby: a new epoch begins at the head; cursors of the old one up to there stay valid.
CREATE OR REPLACE FUNCTION rowcast.adopt() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
  timeline constant text := left(pg_walfile_name(pg_current_wal_lsn()), 8);
  fresh constant text := left(gen_random_uuid()::text, 8);
  here constant oid := (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
  head rowcast.head;
  log record;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'rowcast.adopt() needs a READ COMMITTED transaction of its own' USING ERRCODE = '25001';
  END IF;
  PERFORM pg_advisory_xact_lock(7499639, 3);
  SELECT e.epoch, e.timeline, rowcast.is_ours(e.xmin, e.stamp, e.database) AS ours INTO log
    FROM rowcast.epoch e ORDER BY e.id DESC LIMIT 1;
  IF log.ours AND log.timeline = timeline THEN
    RETURN log.epoch;
  END IF;
  PERFORM set_config('synchronous_commit', 'on', true);
  SELECT * INTO STRICT head FROM rowcast.head h ORDER BY h.batch DESC LIMIT 1;

  IF log.ours THEN
    INSERT INTO rowcast.epoch (epoch, start, timeline, database) VALUES (fresh, head.position, timeline, here);
    RETURN fresh;
  END IF;

  WITH taken AS (
    DELETE FROM rowcast.outbox RETURNING *
  ), logged AS (
    INSERT INTO rowcast.event (position, outbox_id, session_id, project_id, job_id, request_id, user_id, table_name, channel,
                               type, payload, created_at)
    SELECT head.position + row_number() OVER (ORDER BY t.id), t.id,
           rowcast.topic_id(t.session_id), rowcast.topic_id(t.project_id), rowcast.topic_id(t.job_id),
           rowcast.topic_id(t.request_id), rowcast.topic_id(t.user_id), rowcast.topic_id(t.table_name), t.channel,
           t.type, rowcast.bounded(t.payload), t.created_at
      FROM taken t
     WHERE NOT EXISTS (SELECT FROM rowcast.event e WHERE e.outbox_id = t.id)
    RETURNING 1
  ), closed AS (
    DELETE FROM rowcast.epoch
  ), opened AS (
    INSERT INTO rowcast.epoch (epoch, start, timeline, database) SELECT fresh, head.position + count(*), timeline, here FROM logged
  ), kept AS (
    UPDATE rowcast.pruned SET low = pg_current_snapshot()
  )
  INSERT INTO rowcast.head (position, low, high, last_id)
  SELECT head.position + count(*), pg_current_snapshot(), NULL, 0 FROM logged;
  RETURN fresh;
END
$$
