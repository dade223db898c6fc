-- Changes many messages at once; answers each with what became of it, in the order of the array. See docs/schema.md.
-- A row that somebody else holds is answered with 'locked', and makes nobody wait. What was found while locking is the
-- newest version, also where that is newer than the statement's snapshot; the UPDATE then goes by the same one.
CREATE OR REPLACE FUNCTION rowcast.message_write(writes jsonb, lease interval DEFAULT '30 seconds', durable boolean DEFAULT true)
RETURNS TABLE (id uuid, outcome text)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off -- rows are found by their keys, whatever the planner believes of the table
SET enable_hashjoin = off
SET enable_mergejoin = off
SET jit = off
BEGIN ATOMIC
  SELECT set_config('synchronous_commit', CASE WHEN durable THEN 'on' ELSE 'off' END, true) WHERE durable = (current_setting('synchronous_commit') = 'off');
  WITH asked AS MATERIALIZED (
    SELECT a.n, w.id, w.fence, w.revision, w."offset", w.delta, w.status, w.metadata, clock_timestamp() AS at
      FROM jsonb_array_elements(rowcast.check_writes(writes, '{streaming,completed,failed}', '{id}')) WITH ORDINALITY AS a (write, n),
           jsonb_to_record(a.write) AS w (id uuid, fence uuid, revision bigint, "offset" numeric, delta text, status text, metadata jsonb)
  ), judged AS MATERIALIZED (
    SELECT a.n, a.id, t.*, CASE
             WHEN r.held IS NULL THEN 'gone'
             WHEN a.fence IS NOT NULL AND r.fence IS NULL THEN 'expired'
             WHEN a.fence <> r.fence THEN 'taken'
             WHEN t.text COLLATE "C" = r.text COLLATE "C" AND t.status = r.status AND t.metadata = r.metadata
                  AND (r.ended OR t.lease_expires_at IS NOT DISTINCT FROM r.lease_expires_at
                       AND (t.revision IS NOT DISTINCT FROM r.revision OR a.revision < coalesce(r.revision, 0))) THEN 'written'
             WHEN r.ended THEN 'ended'
             WHEN a.revision < coalesce(r.revision, 0) THEN 'overtaken'
             WHEN t.text IS NULL THEN 'cut'
             WHEN NOT r.held THEN 'locked'
           END AS outcome -- null: to be done
      FROM asked a
      LEFT JOIN LATERAL (
        SELECT h.*, h.status IN ('completed', 'failed') AS ended
          FROM (
            SELECT l.* FROM (
              SELECT m.fence, m.revision, m.lease_expires_at, m.status, m.text, m.metadata, true AS held
                FROM public.message m WHERE m.id = a.id FOR NO KEY UPDATE SKIP LOCKED) l
            UNION ALL -- the committed one, where somebody else has it
            SELECT m.fence, m.revision, m.lease_expires_at, m.status, m.text, m.metadata, false FROM public.message m WHERE m.id = a.id
            LIMIT 1
          ) h
      ) r ON true
      LEFT JOIN LATERAL ( -- what it is to be
        SELECT CASE WHEN a."offset" IS NULL THEN r.text || coalesce(a.delta, '')
                    WHEN a."offset" <= length(r.text) THEN left(r.text, a."offset"::integer) || coalesce(a.delta, '') END AS text,
               coalesce(a.status, r.status) AS status,
               CASE WHEN a.metadata IS NULL THEN r.metadata
                    WHEN jsonb_typeof(r.metadata) = 'object' THEN r.metadata || a.metadata ELSE a.metadata END AS metadata,
               coalesce(a.revision, r.revision) AS revision,
               CASE WHEN a.status IN ('completed', 'failed') THEN NULL
                    ELSE rowcast.renewed(r.lease_expires_at, message_write.lease, a.at) END AS lease_expires_at
        OFFSET 0 -- a fence: worked out once
      ) t ON true
  ), done AS (
    UPDATE public.message m
       SET text = j.text, status = j.status, metadata = j.metadata, revision = j.revision, lease_expires_at = j.lease_expires_at
      FROM judged j WHERE m.id = j.id AND j.outcome IS NULL
  )
  SELECT j.id, coalesce(j.outcome, 'written') FROM judged j ORDER BY j.n;
END
