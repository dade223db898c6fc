-- Puts a capture function on a table: one statement trigger for each kind of write,
-- since a trigger with transition tables takes one event only.
CREATE OR REPLACE FUNCTION rowcast.attach(target regclass, capture regproc) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER rowcast_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows
                  FOR EACH STATEMENT EXECUTE FUNCTION %s()', target, capture);
  EXECUTE format('CREATE TRIGGER rowcast_update AFTER UPDATE ON %s REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
                  FOR EACH STATEMENT EXECUTE FUNCTION %s()', target, capture);
  EXECUTE format('CREATE TRIGGER rowcast_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows
                  FOR EACH STATEMENT EXECUTE FUNCTION %s()', target, capture);
END
$$
