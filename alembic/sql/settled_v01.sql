-- An error for each outcome but 'written', for those who write one row and want to hear of it that way. `status` is the row's.
CREATE OR REPLACE FUNCTION rowcast.settled(what text, id uuid, outcome text, status text) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
  SELECT CASE outcome
    WHEN 'written' THEN true
    WHEN 'gone' THEN rowcast.refuse('RC010', format('%s %s: there is none: nothing was changed', what, id))
    WHEN 'expired' THEN rowcast.refuse('RC011', format(CASE WHEN status IN ('failed', 'error')
      THEN '%s %s: its lease ran out, and it was failed: nothing was changed'
      ELSE '%s %s: nobody holds it by a fence (any more), and it is %s: nothing was changed' END, what, id, status))
    WHEN 'taken' THEN rowcast.refuse('RC012', format('%s %s: another writer took it, and has another fence: nothing was changed', what, id))
    WHEN 'ended' THEN rowcast.refuse('RC013', format('%s %s: it is %s already: nothing was changed', what, id, status))
    WHEN 'cut' THEN rowcast.refuse('RC014', format('%s %s: its text is shorter than the offset: nothing was changed', what, id))
    WHEN 'overtaken' THEN rowcast.refuse('RC015', format('%s %s: a write of a higher revision came before: nothing was changed', what, id))
    ELSE rowcast.refuse('55P03', format('%s %s: another transaction holds it, or what belongs to it: nothing was changed', what, id))
  END;
END
