"""Native change events about people whose records are spread over three sources; the same for the same seed.

    python benchmarks/generate_changes.py --events 100000 --records 20000 --seed 1 > changes.jsonl

Every five records belong to about two people. A person's records share e-mail addresses and phone numbers, written in
different ways, so that identity resolution has real work; a few hold values that many hold, such as test@example.com.
A record is inserted, updated and deleted in turn, and may come back. When all records are there and an event is to be
neither an update nor a delete, it is one of a snapshot that is taken again: the row as it is, at a new position.
"""

import argparse
import random
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

SOURCES = (("crm", "customers", "id"), ("shop", "accounts", "account_no"), ("support", "contacts", "contact_id"))
PEOPLE_PER_RECORD = 0.4
JUNK_SHARE = 0.01
IDENTIFIER_CHANGE_SHARE = 0.2  # of the updates
START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(milliseconds=20)
FIRST = ("Ada", "Alan", "Zoë", "Grace", "Linus", "Barbara", "Edsger", "José", "Margaret", "Dennis", "Radia", "Søren")
LAST = ("Lovelace", "Turing", "Ünal", "Hopper", "Novák", "Liskov", "Dijkstra", "García", "Hamilton", "Ritchie", "Allen")
CITIES = ("London", "Oslo", "Brno", "Zürich", "Lisbon", "Boston", "Osaka", "Lagos", "Lima", "Auckland")
TIERS = ("basic", "silver", "gold")
WORDS = ("prefers", "window", "seats", "and", "late", "checkout", "travels", "with", "a", "dog", "quiet", "rooms")
# North American area codes that are in use, so that a phone library takes the numbers as valid.
AREAS = ("202", "203", "205", "206", "207", "208", "209", "212", "213", "214", "215", "216", "217", "218", "219", "301",
         "302", "303", "304", "305", "307", "308", "309", "312", "313", "314", "315", "316", "317", "318", "319", "401",
         "402", "404", "405", "406", "407", "408", "409", "410", "412", "413", "414", "415", "417", "419")  # fmt: skip


@dataclass(slots=True)
class Person:
    """Someone, and the identifiers that their records draw from."""

    number: int
    first: str
    last: str
    emails: list[str]
    phones: list[str]
    birth_date: str


class World:
    """People, their records as they are now, and the events that change them."""

    def __init__(self, records: int, line_bytes: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._line_bytes = line_bytes
        self._phones = 0
        people = [self._person(number) for number in range(max(1, round(records * PEOPLE_PER_RECORD)))]
        owners = people + self._random.choices(people, k=max(0, records - len(people)))
        self._random.shuffle(owners)
        self.owners = owners[:records]
        self._rows: dict[int, dict[str, Any]] = {}  # of the records that are there
        self._there: list[int] = []
        self._absent = list(range(records))[::-1]
        self._positions = dict.fromkeys((source for source, _, _ in SOURCES), 0)
        self._now = START

    def events(self, count: int, updates: float, deletes: float) -> Iterator[dict[str, Any]]:
        """`count` events, of which the given shares are updates and deletes."""
        kinds = ["update"] * round(count * updates) + ["delete"] * round(count * deletes)
        kinds = (kinds + ["insert"] * count)[:count]
        self._random.shuffle(kinds)
        for kind in kinds:
            if kind == "insert" or not self._there:
                yield self._insert() if self._absent else self._snapshot()
            else:
                yield self._update() if kind == "update" else self._delete()

    def _insert(self) -> dict[str, Any]:
        record = self._absent.pop()
        self._there.append(record)
        self._rows[record] = self._row(self.owners[record])
        return self._event("insert", record)

    def _update(self) -> dict[str, Any]:
        record = self._random.choice(self._there)
        row, owner = self._rows[record], self.owners[record]
        if self._random.random() < IDENTIFIER_CHANGE_SHARE:
            row["email"], row["phone"] = self._email(owner), self._phone(owner)
        row["tier"], row["points"] = self._random.choice(TIERS), row["points"] + self._random.randrange(1, 500)
        return self._event("update", record)

    def _delete(self) -> dict[str, Any]:
        place = self._random.randrange(len(self._there))
        self._there[place], self._there[-1] = self._there[-1], self._there[place]
        record = self._there.pop()
        self._absent.insert(0, record)  # to come back last
        del self._rows[record]
        return self._event("delete", record)

    def _snapshot(self) -> dict[str, Any]:
        return self._event("snapshot", self._random.choice(self._there))

    def _event(self, op: str, record: int) -> dict[str, Any]:
        source, entity, column = SOURCES[record % len(SOURCES)]
        self._positions[source] += 1
        self._now += STEP
        event: dict[str, Any] = {"source": source, "entity": entity, "op": op, "key": {column: record + 1}}
        if op != "delete":
            event["after"] = {column: record + 1, **self._rows[record]}
        event["position"], event["time"] = self._positions[source], self._now.isoformat().replace("+00:00", "Z")
        if op != "delete":
            event["after"]["notes"] = self._notes(self._line_bytes - len(orjson.dumps(event)) - len(',"notes":""'))
        return event

    def _notes(self, length: int) -> str:
        words = self._random.choices(WORDS, k=max(0, length) // 3 + 1)
        return " ".join(words)[: max(0, length)]

    def _person(self, number: int) -> Person:
        first, last = self._random.choice(FIRST), self._random.choice(LAST)
        return Person(
            number=number,
            first=first,
            last=last,
            emails=[f"{_plain(first)}.{_plain(last)}.{number}@{host}" for host in ("example.com", "example.org")],
            phones=[self._new_phone(), self._new_phone()],
            birth_date=f"{self._random.randrange(1940, 2008)}-{self._random.randrange(1, 13):02d}-15",
        )

    def _new_phone(self) -> str:
        """A number that nobody else has; the exchange 555 is given to no subscribers."""
        line, area = divmod(self._phones, len(AREAS))
        self._phones += 1
        return f"{AREAS[area]}555{line:04d}"

    def _row(self, owner: Person) -> dict[str, Any]:
        return {
            "first_name": owner.first,
            "last_name": self._random.choice((owner.last, owner.last.upper(), owner.last)),
            "email": self._email(owner),
            "phone": self._phone(owner),
            "birth_date": owner.birth_date,
            "city": self._random.choice(CITIES),
            "tier": self._random.choice(TIERS),
            "points": self._random.randrange(1000),
        }

    def _email(self, owner: Person) -> str | None:
        if self._random.random() < JUNK_SHARE:
            return self._random.choice(("test@example.com", "null", "noreply@example.com"))
        # The first address is on most records and holds a person's together.
        email = owner.emails[0 if self._random.random() < 0.9 else 1]
        return self._random.choice((email, email.title(), f" {email}"))

    def _phone(self, owner: Person) -> str | None:
        chance = self._random.random()
        if chance < JUNK_SHARE:
            return "0000000"
        if chance < 0.2:
            return None
        phone = owner.phones[0 if self._random.random() < 0.9 else 1]
        return self._random.choice((f"+1{phone}", f"+1 ({phone[:3]}) {phone[3:6]}-{phone[6:]}", f"001{phone}"))


def _plain(name: str) -> str:
    """A name as it stands in an address: small ASCII letters."""
    return unicodedata.normalize("NFKD", name.lower().replace("ø", "o")).encode("ascii", "ignore").decode()


def main() -> None:
    """Write events to standard output, one a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--updates", type=float, default=0.30, help="the share of updates")
    parser.add_argument("--deletes", type=float, default=0.05, help="the share of deletes")
    parser.add_argument("--bytes", type=int, default=500, help="the length of a line, but for deletes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--truth", type=Path, help="write whose each record is: record, tabulator, person")
    options = parser.parse_args()
    if options.records < 1 or options.updates < 0 or options.deletes < 0 or options.updates + options.deletes > 1:
        parser.error("at least one record, and shares from 0 to 1 in all")
    world = World(options.records, options.bytes, options.seed)
    for event in world.events(options.events, options.updates, options.deletes):
        sys.stdout.buffer.write(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE))
    if options.truth:
        lines = (
            "{}/{}/{}\t{}\n".format(*SOURCES[record % len(SOURCES)][:2], record + 1, owner.number)
            for record, owner in enumerate(world.owners)
        )
        options.truth.write_text("".join(lines))


if __name__ == "__main__":
    main()
