-- An event of your own, to those who follow one of these; see docs/watch.md.
CREATE OR REPLACE FUNCTION rowcast.emit(
  type text, payload jsonb, session_id text DEFAULT NULL, project_id text DEFAULT NULL, job_id text DEFAULT NULL, user_id text DEFAULT NULL,
  channel text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $$
DECLARE
  id text;
BEGIN
  IF coalesce(type !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' OR length(type) > 128, true) THEN
    RAISE EXCEPTION 'type % is no good: letters, digits, _, - and dots between, at most 128', coalesce(quote_literal(left(type, 150)), 'null')
      USING ERRCODE = '22023';
  ELSIF rowcast.is_frame(type) THEN
    RAISE EXCEPTION 'type % is what streams call a frame of their own: take another', type USING ERRCODE = '22023';
  ELSIF jsonb_typeof(payload) IS DISTINCT FROM 'object' THEN
    RAISE EXCEPTION 'payload is no JSON object' USING ERRCODE = '22023';
  ELSIF jsonb_path_exists(payload, 'strict $.**{200}') THEN
    RAISE EXCEPTION 'payload is nested deeper than 200' USING ERRCODE = '22023';
  ELSIF coalesce(session_id, project_id, job_id, user_id, channel) IS NULL THEN
    RAISE EXCEPTION 'nobody would be told: give session_id, project_id, job_id, user_id or channel' USING ERRCODE = '22023';
  END IF;
  FOREACH id IN ARRAY array_remove(ARRAY[session_id, project_id, job_id, user_id], NULL) LOOP
    IF rowcast.follower(jsonb_build_object('id', id), 'id') IS NULL THEN
      RAISE EXCEPTION 'id % is no good: 1 to 128 characters without control characters', quote_literal(left(id, 150)) USING ERRCODE = '22023';
    END IF;
  END LOOP;
  PERFORM rowcast.check_channel(channel);
  INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, channel, type, payload)
  VALUES (emit.session_id, emit.project_id, emit.job_id, emit.user_id, emit.channel, emit.type, emit.payload);
  PERFORM rowcast.ring();
END
$$
