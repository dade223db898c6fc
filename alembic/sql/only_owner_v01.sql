-- Takes {table} from all who were given rights by default; its owner keeps them.
DO $$
DECLARE
  grantee text;
BEGIN
  FOR grantee IN SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
                   FROM pg_class c, aclexplode(c.relacl) a
                  WHERE c.oid = 'rowcast.{table}'::regclass AND a.grantee <> c.relowner LOOP
    EXECUTE format('REVOKE ALL ON rowcast.{table} FROM %s', grantee);
  END LOOP;
END
$$
