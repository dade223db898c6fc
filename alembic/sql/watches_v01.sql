-- What is watched, and what is wrong there. A partition counts as part of its table.
CREATE OR REPLACE VIEW rowcast.watches AS
SELECT w.target, coalesce(w.a[1], w.target::text) AS name, coalesce(w.a[8]::text[], '{}') AS columns,
       nullif(w.a[3], '') AS session_column, nullif(w.a[4], '') AS project_column, nullif(w.a[5], '') AS job_column,
       nullif(w.a[6], '') AS user_column, nullif(w.a[2], '') AS channel, rowcast.problems(w.target, w.tgargs) AS problems
  FROM (SELECT DISTINCT ON (g.tgrelid) g.tgrelid::pg_catalog.regclass AS target, g.tgargs, rowcast.arguments(g.tgargs) AS a
          FROM pg_catalog.pg_trigger g
         WHERE g.tgfoid = 'rowcast.capture()'::pg_catalog.regprocedure
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_trigger p ON p.tgrelid = i.inhparent
                            WHERE i.inhrelid = g.tgrelid AND p.tgfoid = g.tgfoid AND p.tgargs = g.tgargs)
         ORDER BY g.tgrelid, g.tgname) w
