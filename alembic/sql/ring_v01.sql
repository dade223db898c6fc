-- Ring the doorbell, unless a sequencer is polling (it then holds DOORBELL, and looks anyway).
-- The lock is tried and released in one expression: between two, a cancel could leave the session holding it.
-- A full notification queue makes commits fail, so at one half we rely on the slow tick instead; asking how full
-- it is takes a lock of the whole cluster, so that comes last.
CREATE OR REPLACE FUNCTION rowcast.ring() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  IF current_setting('rowcast.doorbell', true) = 'off' THEN
    RETURN;
  END IF;
  IF (CASE WHEN pg_try_advisory_lock_shared(7499639, 2) THEN pg_advisory_unlock_shared(7499639, 2) ELSE false END) THEN
    IF pg_notification_queue_usage() < 0.5 THEN
      PERFORM pg_notify('rowcast_doorbell', '');
    END IF;
  END IF;
END
$$
