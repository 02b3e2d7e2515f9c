-- The schema moves under the running capture, and the less common events occur.
\set ON_ERROR_STOP on

-- a new column: no event tells of it, it just appears in the next rows
\connect crm
ALTER TABLE customers ADD COLUMN dietary_preference text;
UPDATE customers SET dietary_preference = 'vegetarian, no nuts', updated_at = '2026-11-25T08:00:00Z' WHERE id = 1001;
UPDATE customers SET dietary_preference = 'halal', updated_at = '2026-11-25T08:00:00Z' WHERE id = 1025;
INSERT INTO customers
  (id, email, phone, full_name, birth_date, address, city, country, loyalty_number, tier, preferences,
   marketing_opt_in, dietary_preference, updated_at) VALUES
  (1041, 'nils.aikio@example.com', '+47 78 46 71 05', 'Nils-Ánte Áikio', '2001-06-17', 'Suomageaidnu 8', 'Kárášjohka',
   'NO', 'MT-3312-5870', 'member', '{"seat": "window", "language": "se"}', true, 'lactose-free', '2026-11-25T08:00:00Z');
-- a primary key changes: a delete and a tombstone of the old key, a create of the new one
UPDATE customers SET id = 2038 WHERE id = 1038;

-- a deleted row: a delete event, then a tombstone
\connect web
DELETE FROM accounts WHERE id = 5035;

\connect bookings
INSERT INTO bookings VALUES
  ('MB-70471', 'nils.aikio@example.com', '+4778467105', 'hotel', 'TRO-FJO', '2027-02-12', NULL, 3, 'confirmed', 6570.00,
   'NOK', '2026-11-25T08:05:00Z');
-- all rows of a table go at once: one event with no key
TRUNCATE holds;

-- a column changes its type, from a JSON number to text (numeric is captured as text), for half stars
\connect inventory
ALTER TABLE hotels ALTER COLUMN stars TYPE numeric(2, 1);
UPDATE hotels SET stars = 4.5 WHERE id = 'OPO-RIB';
-- a text that is embedded changes
UPDATE hotels SET description = 'A 1911 bath house on the Buda side with three indoor thermal pools at 28, 36 and 40 '
  'degrees. The pools are closed for renovation from 11 January to 30 June 2027; guests of these months bathe free of '
  'charge at the Rudas baths, 600 metres away. Massage must be booked by 17:00 for the next day.',
  stars = 3.5 WHERE id = 'BUD-SZA';
