"""The places of Debezium's events in the order of their database, as text that compares.

PostgreSQL: (last commit, change), from `source.sequence`, then the event's order in its transaction where the
connector tells it. The change's own LSN can go down from one event to the next when transactions overlapped, so it
decides only among events of one transaction. A row of a snapshot stands at (LSN of the snapshot, 0), or at
(last commit, 0) when changes were streamed before: above all that was streamed earlier, below all that is streamed
later. The first transaction after a connector's first start has no last commit; its changes' LSN stands in for it.

MySQL and MariaDB: (file, position, row). Names of files compare only among files of one base name, so after a
failover to a server that names its files otherwise the order of arrival decides.

MongoDB: the cluster's time (seconds, ordinal). All events of a transaction have one time, so that within a transaction
only Debezium's `total_order` tells the order; without it the order of arrival decides.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from services.kernel.positions import natural, padded

NOWHERE = ("", "")
"""No position: the order of arrival decides."""


def position_of(source: Mapping[str, Any], name: str, *, snapshot: bool, order: Any = None) -> tuple[str, str]:
    """The position of an event, comparable, and as the database's own tools write it.

    Args:
        source: The event's `source` block.
        name: The source's name: positions of different sources do not compare.
        snapshot: Whether the event is a row of a snapshot.
        order: The event's order in its transaction, where it is told.
    """
    if type(source.get("file")) is str:
        return _mysql(source, name, snapshot=snapshot)
    if "ord" in source:
        return _mongodb(source, name, order)
    if "lsn" in source or "sequence" in source:
        return _postgresql(source, name, snapshot=snapshot, order=order)
    return NOWHERE


def _postgresql(source: Mapping[str, Any], name: str, *, snapshot: bool, order: Any) -> tuple[str, str]:
    commit, lsn = _sequence(source.get("sequence"))
    if lsn is None:
        return NOWHERE  # the bare LSN of `source.lsn` does not order changes
    commit = lsn if commit is None else commit
    within = f"{0 if snapshot else lsn:020d}.{order if _is_place(order) else 0:010d}"
    return f"pg:{name}:{padded(commit)}.{within}", f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _sequence(text: Any) -> tuple[int | None, int | None]:
    """The last commit and the change in a text such as `["26390000","26390128"]` or `[null,"26389672"]`."""
    try:
        commit, lsn = orjson.loads(text)
    except (TypeError, ValueError):
        return None, None
    return _number(commit), _number(lsn)


def _number(value: Any) -> int | None:
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) <= 20:
        return int(value)
    return value if _is_place(value) else None


def _mysql(source: Mapping[str, Any], name: str, *, snapshot: bool) -> tuple[str, str]:
    file, at, row = source["file"], _number(source.get("pos")), _number(source.get("row") or 0)
    if at is None or row is None:
        return NOWHERE
    base, _, number = file.rpartition(".")
    within = f"{natural(number)}.{padded(at)}.{0 if snapshot else row + 1:010d}"
    gtid = source.get("gtid")
    return f"mysql:{name}/{base}:{within}", gtid if type(gtid) is str and gtid else f"{file}:{at}"


def _mongodb(source: Mapping[str, Any], name: str, order: Any) -> tuple[str, str]:
    milliseconds: Any = source.get("ts_ms")
    ordinal = source["ord"]
    if not (_is_place(milliseconds) and _is_place(ordinal)):
        return NOWHERE
    if not _is_place(order):
        if source.get("txnNumber") is not None:
            return NOWHERE
        order = 0
    seconds = milliseconds // 1_000
    return f"mongodb:{name}:{padded(seconds)}.{ordinal:010d}.{order:010d}", f"Timestamp({seconds}, {ordinal})"


def _is_place(value: Any) -> bool:
    return type(value) is int and value >= 0
