"""The consumer of the topic `changes`: a batch in, who is who and its events out."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.identity_graph.assignments import assignments
from services.identity_graph.changes import Delta, Effect, read_change, scope_prefix
from services.identity_graph.clustering import NOTHING, Outcome
from services.identity_graph.columns import Extractor
from services.identity_graph.decider import apply
from services.identity_graph.journal import decisions
from services.identity_graph.loading import begin, work_out
from services.identity_graph.model import Kinds
from services.identity_graph.ports import GraphStore
from services.identity_graph.reading import take_rows
from services.identity_graph.working_set import WorkingSet
from services.kernel import topics
from services.kernel.log import Ledger, Message, Progress, Record
from services.kernel.processor import Decision, Processor

GROUP = "identity-graph"


@dataclass(frozen=True, slots=True)
class Work:
    """A batch whose changes have been decided, and what follows from them.

    Attributes:
        state: the working set; None for an empty batch.
        decided: per offset, what became of the record, or why it cannot be read.
        outcome: who is who now.
    """

    state: WorkingSet | None
    decided: dict[int, Decision | Exception]
    outcome: Outcome


class ChangeStore:
    """The state of a batch of changes; see `services.kernel.processor.Store`."""

    def __init__(self, graph: GraphStore, extractor: Extractor, kinds: Kinds) -> None:
        self._graph, self._extractor, self._kinds = graph, extractor, kinds

    async def load(self, batch: Sequence[Record]) -> Work:
        """Decide on the records, and load and work out the components that they change."""
        if not batch:
            return Work(None, {}, NOTHING)
        decided: dict[int, Decision | Exception] = {}
        deltas = []
        for record in batch:
            try:
                deltas.append(read_change(record, self._extractor))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it: `decide` tells, so that it stands alone
                decided[record.offset] = error
        state = await self._begin(deltas, batch[0].partition)
        for delta in deltas:
            decided[delta.offset] = apply(state, delta)
        return Work(state, decided, await work_out(self._graph, state))

    async def _begin(self, deltas: Sequence[Delta], partition: int) -> WorkingSet:
        keys = {delta.key for delta in deltas if delta.effect in {Effect.HOLD, Effect.REMOVE}}
        state = await begin(self._graph, self._kinds, keys, partition)
        for delta in deltas:
            if delta.effect is Effect.TRUNCATE:
                prefix = scope_prefix(delta.tenant, delta.source, delta.entity)
                take_rows(state, await self._graph.rows_of_scope(prefix, delta.partition))
        return state

    async def save(self, state: Work, progress: Progress) -> None:
        """Make the batch last."""
        del progress  # the graph is in the log's own database, or has a ledger
        if state.state is not None:
            await self._graph.write(state.state, state.outcome)


def decide(work: Work, record: Record) -> Decision:
    """Return what became of a record; raises what made it unreadable."""
    decision = work.decided[record.offset]
    if isinstance(decision, Exception):
        raise decision
    return decision


def finish(work: Work) -> list[Message]:
    """Return the events that a batch leads to."""
    if work.state is None:
        return []
    return [*assignments(work.state, work.outcome), *decisions(work.state, work.outcome)]


def processor(store: ChangeStore, ledger: Ledger | None = None) -> Processor[Work]:
    """Return the consumer group's work."""
    return Processor(GROUP, (topics.CHANGES,), store, decide, finish, ledger=ledger)
