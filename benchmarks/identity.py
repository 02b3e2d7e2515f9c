"""How long identity resolution takes per change: `python -m benchmarks.identity [--changes N] [--batch N] [--profile]`.

Records of persons (2.5 a person, e-mail, telephone, account and name, over three sources): 65 % inserts, 30 % updates
of which most change no identifier, 5 % deletes. Everything of the stage counts, in CPU time, from the encoded change to
its events and rows in SQLite; the log's own appends are counted beside it.
"""

import argparse
import asyncio
import cProfile
import pstats
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from headwater.ingest.v1 import events_pb2
from services.identity_graph.app import changes_processor, sqlite_adapters
from services.identity_graph.model import Kinds
from services.identity_graph.settings import Settings
from services.kernel import topics
from services.kernel.log import Message, Progress, Record, Tally, key_of
from services.kernel.sqlite import Database
from services.kernel.sqlite_log import SqliteLog
from services.kernel.topics import TOPICS

START_MS = 1_700_000_000_000
ENTITIES = (("crm", "customers"), ("shop", "orders"), ("support", "tickets"))


def person(number: int) -> dict[str, object]:
    """Return what identifies a person."""
    return {
        "name": f"Person {number}", "email": f"person{number}@mail{number % 97}.example.com",
        "phone": f"+1415{2000000 + number}", "loyalty_number": f"HW{number:08d}",
    }  # fmt: skip


def row_of(rng: random.Random, entity: str, number: int, key: int) -> dict[str, object]:
    """Return a row of an entity that belongs to a person."""
    whole = person(number)
    held = {"customers": ("name", "email", "phone"), "orders": ("name", "email", "loyalty_number"),
            "tickets": ("name", "phone", "loyalty_number")}[entity]  # fmt: skip
    return {"id": key, **{name: whole[name] for name in held}, "city": "Paris", "amount": rng.randint(1, 900)}


def changes(count: int, seed: int = 7) -> Iterator[events_pb2.Change]:
    """Return the changes."""
    rng = random.Random(seed)
    live: list[tuple[str, str, int, int, dict[str, object]]] = []
    persons = 0
    for step in range(count):
        position = step + 1
        draw = rng.random()
        if draw < 0.65 or len(live) < 10:
            if rng.random() < 1 / 2.5 or persons == 0:
                persons += 1
                number = persons
            else:
                number = rng.randint(max(1, persons - 20_000), persons)
            source, entity = rng.choice(ENTITIES)
            row = row_of(rng, entity, number, step)
            live.append((source, entity, step, number, row))
            yield change((source, entity, step), row, events_pb2.OPERATION_INSERT, position)
        elif draw < 0.95:
            index = rng.randrange(len(live))
            source, entity, key, number, row = live[index]
            row = {**row, "amount": rng.randint(1, 900)}
            if rng.random() < 0.1:
                row["name"] = f"Person {number} {rng.randint(1, 9)}"
            live[index] = (source, entity, key, number, row)
            yield change((source, entity, key), row, events_pb2.OPERATION_UPDATE, position)
        else:
            index = rng.randrange(len(live))
            live[index], live[-1] = live[-1], live[index]
            source, entity, key, _, _ = live.pop()
            yield change((source, entity, key), None, events_pb2.OPERATION_DELETE, position)


def change(
    place: tuple[str, str, int], row: dict[str, object] | None, operation: events_pb2.Operation.ValueType, position: int
) -> events_pb2.Change:
    """Return a change of the row at source, entity and key."""
    source, entity, key = place
    event = events_pb2.Change(
        tenant="default", source=source, entity=entity, record=f"{source}/{entity}/{key}", key_json=f'{{"id":{key}}}',
        operation=operation, after_json=orjson.dumps(row).decode() if row else "", position=f"{source}:{position:020d}",
        source_position=str(position),
    )  # fmt: skip
    event.occurred_at.FromMilliseconds(START_MS + position)
    return event


def records(count: int) -> list[Record]:
    """Return the changes as a consumer reads them."""
    kind = events_pb2.Change.DESCRIPTOR.full_name
    return [
        Record(topics.CHANGES, 0, offset, key_of("default", event.record), event.SerializeToString(), kind, str(offset),
               START_MS + offset)
        for offset, event in enumerate(changes(count))
    ]  # fmt: skip


async def run(folder: Path, inputs: list[Record], batch: int, profiler: cProfile.Profile | None) -> list[float]:
    """Work through the inputs; return microseconds per change of every batch, and print where they go."""
    database = Database(folder)
    log = SqliteLog(database)
    await log.create_topics(TOPICS)
    settings = Settings.from_config({})
    work = changes_processor(sqlite_adapters(database, Kinds(settings)), settings)
    assert work.finish is not None
    phases = dict.fromkeys(("load", "decide", "finish", "save", "append", "commit"), 0.0)
    figures, outputs_count = [], 0
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        if profiler:
            profiler.enable()
        marks = [time.thread_time()]
        async with database.transaction() as unit:
            state = await work.store.load(part)
            marks.append(time.thread_time())
            for record in part:
                work.decide(state, record)
            marks.append(time.thread_time())
            outputs: list[Message] = list(work.finish(state))
            marks.append(time.thread_time())
            await work.store.save(
                state, Progress(work.name, topics.CHANGES, 0, start, start + len(part), outputs, Tally())
            )
            marks.append(time.thread_time())
            unit.emit(outputs)
            marks.append(time.thread_time())
        marks.append(time.thread_time())
        if profiler:
            profiler.disable()
        for name, before, after in zip(phases, marks, marks[1:], strict=False):
            phases[name] += after - before
        outputs_count += len(outputs)
        figures.append((marks[4] - marks[0]) / len(part) * 1e6)
    print(f"{len(inputs)} changes in batches of {batch}: {outputs_count} events")
    print("  ".join(f"{name} {seconds / len(inputs) * 1e6:.1f}" for name, seconds in phases.items()), "us per change")
    database.close()
    return figures


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--changes", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    inputs = records(options.changes)
    profiler = cProfile.Profile() if options.profile else None
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(run(Path(folder), inputs, options.batch, profiler))
    print(f"load to save: mean {statistics.mean(figures):.1f}, median {statistics.median(figures):.1f} us per change")
    tenth = max(1, len(figures) // 10)
    print(f"first tenth {statistics.mean(figures[:tenth]):.1f}, last tenth {statistics.mean(figures[-tenth:]):.1f}")
    if profiler:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
