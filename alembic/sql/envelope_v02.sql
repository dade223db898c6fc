-- An event as it travels in a notification. NOTIFY takes less than 8,000 bytes; a longer envelope goes without its
-- payload, and the hub reads that row; one that is still too long says only how far the log goes.
CREATE OR REPLACE FUNCTION rowcast.envelope(epoch text, event rowcast.event) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
DECLARE
  head text := pg_catalog.json_build_object(
    'epoch', epoch, 'position', event.position, 'type', event.type,
    'session_id', event.session_id, 'project_id', event.project_id, 'job_id', event.job_id,
    'request_id', event.request_id, 'user_id', event.user_id, 'table_name', event.table_name,
    'created_at', pg_catalog.date_part('epoch', event.created_at))::text;
  whole text := pg_catalog.left(head, -1) || ', "payload": ' || event.payload::text || '}';
BEGIN
  RETURN CASE WHEN pg_catalog.octet_length(whole) < 8000 THEN whole
              WHEN pg_catalog.octet_length(head) < 8000 THEN head
              ELSE pg_catalog.json_build_object('epoch', epoch, 'upto', event.position)::text END;
END
$$
