-- What a change of one row of a watched table is told as, given its pictures; the rule is that of message_event. (o, NULL)
-- is a deletion, (NULL, n) a creation, and a change of the key is both. A row that moves is deleted for those who followed
-- it where it was, inserted for those where it is, and updated for the rest. Who follows no session, project, job or user
-- follows the table.
-- `audience` names the four columns, null where there is none. Taken from a picture, `key_less` leaves its key and
-- `row_less` its watched columns. Without a primary key, the watched columns as they were are the key.
-- `turn` is the order in which to tell several rows: two that exchange their keys are both gone before they are back.
-- The planner inlines it. OFFSET 0 is a fence: what stands behind it is worked out once.
CREATE OR REPLACE FUNCTION rowcast.row_event(
  o jsonb, n jsonb, name text, audience text[], keyed boolean, key_less text[], row_less text[], at timestamptz)
RETURNS TABLE (session_id text, project_id text, job_id text, user_id text, table_name text, type text, payload jsonb, turn integer)
LANGUAGE sql STABLE
AS $$
  SELECT e.s, e.p, e.j, e.u, e.t,
         name || CASE e.turn WHEN 1 THEN '.deleted' WHEN 2 THEN '.updated' ELSE '.inserted' END,
         jsonb_build_object('key', rowcast.trimmed(e.key), 'timestamp', at)
         || CASE WHEN e.turn = 1 THEN '{}' ELSE jsonb_build_object('row', rowcast.trimmed(e.nrow)) END,
         e.turn
    FROM (
      SELECT told.turn, c.nrow,
             CASE WHEN told.turn = 2 AND c.orow = c.nrow AND c.nrow <> '{"omitted": true}' AND
                       (c.os, c.op, c.oj, c.ou) IS NOT DISTINCT FROM (c.ns, c.np, c.nj, c.nu) THEN false ELSE true END AS changed,
             CASE WHEN (c.whole OR c.os IS DISTINCT FROM c.ns) = (told.turn <> 2) THEN CASE told.turn WHEN 1 THEN c.os ELSE c.ns END END AS s,
             CASE WHEN (c.whole OR c.op IS DISTINCT FROM c.np) = (told.turn <> 2) THEN CASE told.turn WHEN 1 THEN c.op ELSE c.np END END AS p,
             CASE WHEN (c.whole OR c.oj IS DISTINCT FROM c.nj) = (told.turn <> 2) THEN CASE told.turn WHEN 1 THEN c.oj ELSE c.nj END END AS j,
             CASE WHEN (c.whole OR c.ou IS DISTINCT FROM c.nu) = (told.turn <> 2) THEN CASE told.turn WHEN 1 THEN c.ou ELSE c.nu END END AS u,
             CASE WHEN (c.whole OR c.ot IS DISTINCT FROM c.nt) = (told.turn <> 2) THEN CASE told.turn WHEN 1 THEN c.ot ELSE c.nt END END AS t,
             CASE WHEN told.turn = 3 THEN c.nkey ELSE c.okey END AS key
        FROM (VALUES (1), (2), (3)) AS told (turn),
             (SELECT b.*, b.okey IS NULL OR b.nkey IS NULL OR keyed AND b.okey <> b.nkey AS whole,
                     CASE WHEN coalesce(b.os, b.op, b.oj, b.ou) IS NULL AND b.okey IS NOT NULL THEN name END AS ot,
                     CASE WHEN coalesce(b.ns, b.np, b.nj, b.nu) IS NULL AND b.nkey IS NOT NULL THEN name END AS nt
                FROM (SELECT o - key_less AS okey, n - key_less AS nkey, o - row_less AS orow, n - row_less AS nrow,
                             rowcast.follower(o, audience[1]) AS os, rowcast.follower(n, audience[1]) AS ns,
                             rowcast.follower(o, audience[2]) AS op, rowcast.follower(n, audience[2]) AS np,
                             rowcast.follower(o, audience[3]) AS oj, rowcast.follower(n, audience[3]) AS nj,
                             rowcast.follower(o, audience[4]) AS ou, rowcast.follower(n, audience[4]) AS nu
                      OFFSET 0) b
              OFFSET 0) c
      OFFSET 0
    ) e
   WHERE e.changed AND coalesce(e.s, e.p, e.j, e.u, e.t) IS NOT NULL;
$$
