-- The service desk writes Ada's e-mail address into web account 5001: by that address the account, and with it the
-- trip to Kyoto that was booked under the account's own phone number, becomes Ada's.
\set ON_ERROR_STOP on

\connect web
UPDATE accounts SET email = 'Ada.Lindqvist@fjordmail.example', last_login = '2026-11-24T18:30:00Z' WHERE id = 5001;
