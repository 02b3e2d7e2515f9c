-- It was a mistake: the account is her sister Astrid's. It gets its own address back, and its phone number spelt anew.
\set ON_ERROR_STOP on

\connect web
UPDATE accounts SET email = 'wanderlind@postbox.example', phone = '+46701740631' WHERE id = 5001;
