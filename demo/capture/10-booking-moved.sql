-- Ada Lindqvist moves her trip from Lisbon to Porto, one week later; prices and places change around it.
\set ON_ERROR_STOP on

\connect bookings
BEGIN;
UPDATE bookings SET item_id = 'OPO-RIB', check_in = '2027-03-19', nights = 4, price = 568.00 WHERE id = 'MB-70401';
UPDATE bookings SET item_id = 'MT103', departs = '2027-03-19T07:15:00Z', price = 204.00 WHERE id = 'MB-70402';
COMMIT;

\connect inventory
BEGIN;
UPDATE hotels SET rooms_left = 5 WHERE id = 'LIS-ALE';
UPDATE hotels SET rooms_left = 5, price_per_night = 156.00 WHERE id = 'OPO-RIB';
UPDATE flights SET seats_left = 24 WHERE id = 'MT101';
UPDATE flights SET seats_left = 8 WHERE id = 'MT103';
COMMIT;

-- somebody tries to buy the rest of the flight and gives up: nothing of this may be seen downstream
BEGIN;
UPDATE flights SET seats_left = 0, price = 999.00 WHERE id = 'MT103';
ROLLBACK;

-- a group of six buys, and the fare rises
UPDATE flights SET seats_left = 2, price = 259.00 WHERE id = 'MT103';
