-- Turns a change of any watched table into outbox rows. rowcast.watch() attaches it, and all that it has to know is in the
-- trigger's arguments: name, channel, the columns of session, project, job and user ('' is none), the key's columns, the
-- watched columns ({*} is all), and those that a trigger cannot see. Rows are read as pictures, so that a column that is
-- dropped or renamed makes no write fail.
CREATE OR REPLACE FUNCTION rowcast.capture() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC' -- and whatever else a writer may have set otherwise: a row looks like itself
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
SET bytea_output = 'hex'
SET extra_float_digits = 1
SET standard_conforming_strings = on
SET jit = off
AS $$
<<change>>
DECLARE
  at CONSTANT timestamptz := clock_timestamp();
  name CONSTANT text := TG_ARGV[0];
  channel CONSTANT text := nullif(TG_ARGV[1], '');
  audience CONSTANT text[] := ARRAY[nullif(TG_ARGV[2], ''), nullif(TG_ARGV[3], ''), nullif(TG_ARGV[4], ''), nullif(TG_ARGV[5], '')];
  key_columns CONSTANT text[] := TG_ARGV[6];
  columns CONSTANT text[] := TG_ARGV[7];
  hidden CONSTANT text[] := TG_ARGV[8];
  keyed CONSTANT boolean := TG_ARGV[6] <> '{}';
  trusted boolean := NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND a.atttypid >= 16384);
  o jsonb;
  n jsonb;
  key_less text[];
  row_less text[];
  told bigint;
BEGIN
  IF (name ~ '^[A-Za-z0-9_.-]{1,100}$') IS NOT TRUE THEN
    RETURN NULL; -- no trigger that watch() made: clients are not told just anything
  END IF;
  IF TG_OP = 'TRUNCATE' THEN
    -- Its partitions are truncated along, and each has a trigger: one event is enough.
    INSERT INTO rowcast.outbox (table_name, channel, type, payload)
    SELECT change.name, change.channel, change.name || '.truncated', jsonb_build_object('timestamp', change.at)
     WHERE (SELECT p.type FROM rowcast.outbox p WHERE p.xid = pg_current_xact_id() ORDER BY p.id DESC LIMIT 1)
           IS DISTINCT FROM change.name || '.truncated';
    IF FOUND THEN
      PERFORM rowcast.ring();
    END IF;
    RETURN NULL;
  END IF;

  trusted := trusted OR rowcast.trusts(TG_RELID);
  -- One row, as most statements change, and one that stays where it is: without the cost of what serves any number.
  IF trusted THEN
    BEGIN
      CASE TG_OP
      WHEN 'INSERT' THEN
        SELECT to_jsonb(r.*) INTO n FROM new_rows r WHERE NOT EXISTS (SELECT FROM new_rows OFFSET 1);
      WHEN 'UPDATE' THEN
        SELECT to_jsonb(p.*), to_jsonb(r.*) INTO o, n FROM old_rows p, new_rows r
         WHERE NOT EXISTS (SELECT FROM old_rows OFFSET 1) AND NOT EXISTS (SELECT FROM new_rows OFFSET 1);
      WHEN 'DELETE' THEN
        SELECT to_jsonb(p.*) INTO o FROM old_rows p WHERE NOT EXISTS (SELECT FROM old_rows OFFSET 1);
      END CASE;
    EXCEPTION WHEN OTHERS THEN
      o := NULL;
      n := NULL;
    END;
    IF (TG_OP = 'INSERT' OR rowcast.fit(o) IS NOT NULL) AND (TG_OP = 'DELETE' OR rowcast.fit(n) IS NOT NULL)
       AND (TG_OP <> 'UPDATE' OR rowcast.stays(o, n, key_columns || audience)) THEN
      IF rowcast.tell_one(o, n, name, channel, audience, key_columns, columns, hidden, at) THEN
        PERFORM rowcast.ring();
      END IF;
      RETURN NULL;
    END IF;
  END IF;

  SELECT array_agg(a.attname::text) FILTER (WHERE a.attname <> ALL (CASE WHEN change.keyed THEN change.key_columns ELSE change.columns END)),
         array_agg(a.attname::text) FILTER (WHERE a.attname <> ALL (change.columns))
    INTO key_less, row_less
    FROM pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped;
  row_less := CASE WHEN columns = '{*}' THEN hidden ELSE coalesce(row_less, '{}') END;
  key_less := CASE WHEN keyed THEN coalesce(key_less, '{}') ELSE row_less END;

  IF NOT trusted THEN
    EXECUTE format(
      $insert$
        INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, table_name, channel, type, payload)
        SELECT e.session_id, e.project_id, e.job_id, e.user_id, e.table_name, $1, e.type, e.payload
          FROM (%s) o FULL JOIN (%s) n ON n.i = o.i, rowcast.row_event(o.picture, n.picture, $2, $3, $4, $5, $6, $7) e
         ORDER BY e.turn, coalesce(o.i, n.i)
      $insert$, rowcast.pictures(TG_RELID, TG_OP, 'old_rows'), rowcast.pictures(TG_RELID, TG_OP, 'new_rows'))
      USING channel, name, audience, keyed, key_less, row_less, at;
    GET DIAGNOSTICS told = ROW_COUNT;
    IF told > 0 THEN
      PERFORM rowcast.ring();
    END IF;
    RETURN NULL;
  END IF;

  CASE TG_OP
  WHEN 'INSERT' THEN
    INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, table_name, channel, type, payload)
    SELECT e.session_id, e.project_id, e.job_id, e.user_id, e.table_name, change.channel, e.type, e.payload
      FROM (SELECT rowcast.picture(r.*, TG_RELID) AS picture FROM new_rows r OFFSET 0) n,
           rowcast.row_event(NULL, n.picture, change.name, change.audience, change.keyed, change.key_less, change.row_less, change.at) e;
  WHEN 'UPDATE' THEN
    -- The two tables are filled together, an old and a new row at a time. Only a row that a partition's trigger swallows
    -- while it moves there is missing in the second: then no pairs can be told, and the numbers are kept apart.
    INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, table_name, channel, type, payload)
    SELECT e.session_id, e.project_id, e.job_id, e.user_id, e.table_name, change.channel, e.type, e.payload
      FROM (SELECT row_number() OVER () AS i, rowcast.picture(r.*, TG_RELID) AS picture FROM old_rows r) o
      FULL JOIN (SELECT row_number() OVER ()
                        + CASE WHEN (SELECT count(*) FROM old_rows) = (SELECT count(*) FROM new_rows) THEN 0 ELSE 1000000000000 END AS i,
                        rowcast.picture(r.*, TG_RELID) AS picture FROM new_rows r) n ON n.i = o.i,
           rowcast.row_event(o.picture, n.picture, change.name, change.audience, change.keyed, change.key_less, change.row_less, change.at) e
     ORDER BY e.turn, coalesce(o.i, n.i);
  WHEN 'DELETE' THEN
    INSERT INTO rowcast.outbox (session_id, project_id, job_id, user_id, table_name, channel, type, payload)
    SELECT e.session_id, e.project_id, e.job_id, e.user_id, e.table_name, change.channel, e.type, e.payload
      FROM (SELECT rowcast.picture(r.*, TG_RELID) AS picture FROM old_rows r OFFSET 0) o,
           rowcast.row_event(o.picture, NULL, change.name, change.audience, change.keyed, change.key_less, change.row_less, change.at) e;
  END CASE;
  IF FOUND THEN
    PERFORM rowcast.ring();
  END IF;
  RETURN NULL;
END
$$
