"""The consumer of `erasures` and `erasures.done`: takes subjects out of the graph, and keeps the state of erasures."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from headwater.common.v1 import events_pb2
from services.identity_graph.assignments import ASSIGNED, assignments
from services.identity_graph.loading import begin, work_out
from services.identity_graph.model import Erased, Key, Kinds, birth_id, key_text
from services.identity_graph.ports import ErasureStore, GraphStore
from services.identity_graph.working_set import WorkingSet
from services.kernel import topics
from services.kernel.erasure import acknowledgement
from services.kernel.errors import InvalidInputError
from services.kernel.log import DEFAULT_TENANT, Ledger, Message, Progress, Record, partition_of
from services.kernel.processor import APPLIED, Decision, Outcome, Processor

GROUP = "identity-erasures"
SERVICE = "identity_graph"


@dataclass(slots=True)
class Work:
    """What a batch did: per offset, the events that tell of it."""

    told: dict[int, Sequence[Message]] = field(default_factory=dict)


class SubjectStore:
    """Carries erasures out; see `services.kernel.processor.Store`.

    The work is done in `load`, within the batch's unit of work, because the acknowledgement tells what a search found
    *after* the removal.

    Args:
        graph: the graph.
        erasures: the state of erasures.
        kinds: the kinds of identifiers.
        partitions: the number of partitions of the topic `changes`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        graph: GraphStore,
        erasures: ErasureStore,
        kinds: Kinds,
        partitions: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._graph, self._erasures, self._kinds = graph, erasures, kinds
        self._partitions, self._clock = partitions, clock

    async def load(self, batch: Sequence[Record]) -> Work:
        """Carry out what the batch asks for."""
        work = Work()
        for record in batch:
            if record.value is None:
                continue
            if record.type == events_pb2.ErasureRequested.DESCRIPTOR.full_name:
                request = events_pb2.ErasureRequested.FromString(record.value)
                await self._erasures.note_request(request)
                work.told[record.offset] = await self._erase(request, record.timestamp_ms)
            elif record.type == events_pb2.ErasureDone.DESCRIPTOR.full_name:
                await self._erasures.note_answer(events_pb2.ErasureDone.FromString(record.value))
                work.told[record.offset] = ()
        return work

    async def save(self, state: Work, progress: Progress) -> None:
        """Nothing is left to do."""

    async def _erase(self, request: events_pb2.ErasureRequested, now_ms: int) -> list[Message]:
        keys = [key_text(request.tenant or DEFAULT_TENANT, record) for record in request.records]
        state = await begin(self._graph, self._kinds, keys, None)
        fences = self._fences(request, keys, state)
        forgotten = take_out(state, fences)
        removed = {
            "records": sum(state.rows[key].moves for key in forgotten),
            "former records": sum(not state.rows[key].moves for key in forgotten),
        }
        outcome = await work_out(self._graph, state)
        removed["identifiers"] = sum(len(node.content.links) for node in outcome.nodes if not node.rows)
        await self._graph.write(state, outcome)
        await self._graph.forget(forgotten, {birth_id(key): fence for key, fence in fences.items()})
        answer = events_pb2.ErasureDone(
            erasure_id=request.erasure_id, service=SERVICE, removed=removed,
            remaining=await self._graph.remains(
                [state.rows[key] for key in forgotten], [node for node in outcome.nodes if not node.rows]
            ),
        )  # fmt: skip
        answer.done_at.FromMilliseconds(int(self._clock() * 1000))
        gone = {key.encode() for key in forgotten}
        return [
            *(message for message in assignments(state, outcome) if message.key not in gone),
            *(Message(topics.ASSIGNMENTS, key, None, ASSIGNED, now_ms) for key in sorted(gone)),
            acknowledgement(request, answer),
        ]

    def _fences(
        self, request: events_pb2.ErasureRequested, keys: Sequence[Key], state: WorkingSet
    ) -> dict[Key, Erased]:
        """Return from where on each record is new data: what came before the subject was gathered is not."""
        bounds = {place.partition: place.offset for place in request.before.offsets if place.topic == topics.CHANGES}
        partitions = self._partitions()
        fences = {}
        for index, key in enumerate(keys):
            row = state.rows.get(key)
            bound = bounds.get(partition_of(key.encode(), partitions), 0 if row is None or bounds else row.offset + 1)
            position = request.positions[index] if index < len(request.positions) else row.position if row else ""
            fences[key] = Erased(bound, position)
        return fences


def take_out(state: WorkingSet, fences: Mapping[Key, Erased]) -> Collection[Key]:
    """Take records out of the working set, but for those that are new data; return those that go. Pure."""
    gone = []
    for key, fence in fences.items():
        row = state.rows.get(key)
        if row is not None and row.offset < fence.offset:
            row.text, row.aside, row.carried, row.touched = None, None, None, True
            gone.append(key)
    return gone


def decide(work: Work, record: Record) -> Decision:
    """Tell what became of a record."""
    if record.value is not None and record.offset not in work.told:
        raise InvalidInputError(
            f"{record.topic}/{record.partition}/{record.offset} is of the unknown type {record.type!r}"
        )
    outputs = work.told.get(record.offset, ())
    return Decision(Outcome.APPLIED, outputs) if outputs else APPLIED


def processor(store: SubjectStore, ledger: Ledger | None = None) -> Processor[Work]:
    """Return the consumer group's work."""
    return Processor(GROUP, (topics.ERASURES, topics.ERASURES_DONE), store, decide, ledger=ledger)
