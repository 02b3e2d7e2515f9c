-- The four databases of Meridian Travel, each the system of record of one team. Their names become Debezium's
-- `source.name`. Text is left loose on purpose: the same person is spelt differently from system to system.
\set ON_ERROR_STOP on

CREATE DATABASE crm;
CREATE DATABASE web;
CREATE DATABASE bookings;
CREATE DATABASE inventory;

\connect crm
CREATE TABLE customers (
  id                bigint PRIMARY KEY,
  email             text,
  phone             text,
  full_name         text NOT NULL,
  birth_date        date,
  address           text,
  city              text,
  country           text,                     -- ISO 3166-1 alpha-2
  loyalty_number    text,
  tier              text NOT NULL DEFAULT 'member',
  preferences       jsonb NOT NULL DEFAULT '{}',
  marketing_opt_in  boolean NOT NULL DEFAULT false,
  updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE PUBLICATION headwater FOR TABLES IN SCHEMA public;

\connect web
CREATE TABLE accounts (
  id              bigint PRIMARY KEY,
  email           text NOT NULL,
  phone           text,
  display_name    text,
  device_id       text,
  loyalty_number  text,
  last_login      timestamptz
);
CREATE PUBLICATION headwater FOR TABLES IN SCHEMA public;

\connect bookings
CREATE TABLE bookings (
  id              text PRIMARY KEY,
  customer_email  text,
  customer_phone  text,
  kind            text NOT NULL CHECK (kind IN ('hotel', 'flight')),
  item_id         text NOT NULL,              -- inventory: hotels.id or flights.id
  check_in        date,                       -- of a hotel
  departs         timestamptz,                -- of a flight
  nights          smallint,
  status          text NOT NULL,
  price           numeric(12, 2) NOT NULL,
  currency        text NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now()
);
-- updates carry the whole old row, so that "what was it before?" can be answered; the other tables keep the
-- default, under which a delete's `before` holds nothing true but the key
ALTER TABLE bookings REPLICA IDENTITY FULL;
CREATE TABLE holds (
  id          bigint PRIMARY KEY,
  item_id     text NOT NULL,
  places      smallint NOT NULL,
  expires_at  timestamptz NOT NULL
);
CREATE PUBLICATION headwater FOR TABLES IN SCHEMA public;

\connect inventory
CREATE TABLE hotels (
  id               text PRIMARY KEY,
  name             text NOT NULL,
  city             text NOT NULL,
  country          text NOT NULL,
  stars            smallint NOT NULL,
  description      text NOT NULL,
  amenities        text[] NOT NULL,
  price_per_night  numeric(12, 2) NOT NULL,
  currency         text NOT NULL,
  rooms_left       integer NOT NULL
);
CREATE TABLE flights (
  id           text PRIMARY KEY,
  origin       text NOT NULL,                 -- IATA codes
  destination  text NOT NULL,
  departs_at   timestamptz NOT NULL,
  arrives_at   timestamptz NOT NULL,
  aircraft     text NOT NULL,
  notes        text NOT NULL,
  price        numeric(12, 2) NOT NULL,
  currency     text NOT NULL,
  seats_left   integer NOT NULL
);
CREATE PUBLICATION headwater FOR TABLES IN SCHEMA public;
