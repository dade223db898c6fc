-- What rowcast.row_event says of one row that stays where it is, for less. False where there was nothing to tell.
-- Only what is asked for, and plain values: a statement that could do it all would take longer to start than to run.
CREATE OR REPLACE FUNCTION rowcast.tell_one(
  o jsonb, n jsonb, name text, channel text, audience text[], key_columns text[], columns text[], hidden text[], at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
AS $$
<<told>>
DECLARE
  change CONSTANT text := CASE WHEN n IS NULL THEN 'deleted' WHEN o IS NULL THEN 'inserted' ELSE 'updated' END;
  picture CONSTANT jsonb := coalesce(n, o);
  who text[];
  payload jsonb;
  before jsonb;
  row jsonb;
BEGIN
  IF n IS NOT NULL THEN
    row := rowcast.picked(n, columns, hidden);
  END IF;
  IF change = 'updated' OR o IS NOT NULL AND key_columns = '{}' THEN
    before := rowcast.picked(o, columns, hidden);
    IF before = row THEN
      RETURN false;
    END IF;
  END IF;
  payload := jsonb_build_object('timestamp', at,
    'key', CASE WHEN key_columns = '{}' THEN coalesce(before, row) ELSE rowcast.picked(picture, key_columns, hidden) END)
    || CASE WHEN n IS NULL THEN '{}' ELSE jsonb_build_object('row', row) END;
  FOR i IN 1..4 LOOP
    IF audience[i] IS NOT NULL THEN
      who[i] := rowcast.follower(picture, audience[i]);
    END IF;
  END LOOP;
  INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, table_name, channel, type, payload)
  VALUES (who[1], who[2], who[3], who[4], CASE WHEN coalesce(who[1], who[2], who[3], who[4]) IS NULL THEN name END,
          tell_one.channel, name || '.' || change, told.payload);
  RETURN true;
END
$$
