-- Has every change of a table told; see docs/watch.md. Called again, it replaces what it did before.
-- SECURITY INVOKER: only the owner of a table may put triggers on it.
CREATE OR REPLACE FUNCTION rowcast.watch(
  target regclass, columns text[], name text DEFAULT NULL,
  session_column text DEFAULT NULL, project_column text DEFAULT NULL, job_column text DEFAULT NULL, user_column text DEFAULT NULL,
  channel text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
AS $$
DECLARE
  audience CONSTANT text[] := ARRAY[session_column, project_column, job_column, user_column];
  label CONSTANT text := coalesce(watch.name, (SELECT c.relname FROM pg_class c WHERE c.oid = target));
  key text[];
  hidden text[];
  arguments text;
  each regclass;
  kind text;
  other name;
BEGIN
  PERFORM rowcast.check_watchable(target);
  PERFORM rowcast.check_name(label);
  IF watch.name IS NULL AND EXISTS (SELECT FROM rowcast.watches w WHERE w.name = label AND w.target <> watch.target) THEN
    RAISE EXCEPTION 'the name % is taken by %: give another with name =>, or the same, if they are to share it', label,
      (SELECT string_agg(w.target::text, ', ') FROM rowcast.watches w WHERE w.name = label) USING ERRCODE = '42710';
  END IF;
  PERFORM rowcast.check_columns(target, columns, audience);
  PERFORM rowcast.check_channel(channel);

  SELECT array_agg(a.attname::text ORDER BY array_position(i.indkey::int2[], a.attnum)) INTO key
    FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
   WHERE i.indrelid = target AND i.indisprimary;
  SELECT array_agg(a.attname::text) INTO hidden FROM pg_attribute a WHERE a.attrelid = target AND a.attgenerated = 'v';
  SELECT string_agg(quote_literal(coalesce(argument, '')), ', ') INTO arguments
    FROM unnest(ARRAY[label, channel] || audience || ARRAY[coalesce(key, '{}')::text, columns::text, coalesce(hidden, '{}')::text]) AS argument;
  FOR each IN SELECT f.member FROM rowcast.family(target) f LOOP
    FOREACH kind IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
      EXECUTE format('CREATE OR REPLACE TRIGGER rowcast_%s AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION rowcast.capture(%s)',
        kind, kind, each,
        CASE kind WHEN 'insert' THEN 'REFERENCING NEW TABLE AS new_rows'
                  WHEN 'update' THEN 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
                  WHEN 'delete' THEN 'REFERENCING OLD TABLE AS old_rows' ELSE '' END,
        arguments);
    END LOOP;
    -- One that has another name would tell everything again.
    FOR other IN SELECT g.tgname FROM pg_trigger g WHERE g.tgrelid = each AND g.tgfoid = 'rowcast.capture()'::regprocedure
                    AND g.tgname <> ALL ('{rowcast_insert,rowcast_update,rowcast_delete,rowcast_truncate}') LOOP
      EXECUTE format('DROP TRIGGER %I ON %s', other, each);
    END LOOP;
  END LOOP;
END
$$
