-- The role `overnight_console` in Postgres: it reads what the console shows, and can change no data.
-- As the role that the batch signs in as, or as a superuser, once the schema recs exists, and again after a view was
-- dropped and made anew by another role:
--   psql --set=ON_ERROR_STOP=1 --set=password="$CONSOLE_STORE_PASSWORD" --set=batch=overnight "$DATABASE_URL" \
--     < deploy/console-role.sql
-- password: of the new role. batch: the role that the batch signs in as; the tables that it makes later are readable too.

SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'overnight_console') AS missing \gset
\if :missing
CREATE ROLE overnight_console LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 30;
\endif
ALTER ROLE overnight_console PASSWORD :'password';
-- In addition to the missing rights: what PUBLIC may do in the database (temporary tables, large objects, before Postgres 15
-- tables in the schema public), it does not do, unless it ends this setting itself. To take such a right away, it must be
-- revoked from PUBLIC, so from all roles: REVOKE TEMPORARY ON DATABASE ... FROM PUBLIC.
ALTER ROLE overnight_console SET default_transaction_read_only = on;

GRANT USAGE ON SCHEMA recs TO overnight_console;
GRANT SELECT ON ALL TABLES IN SCHEMA recs TO overnight_console;
ALTER DEFAULT PRIVILEGES FOR ROLE :"batch" IN SCHEMA recs GRANT SELECT ON TABLES TO overnight_console;
