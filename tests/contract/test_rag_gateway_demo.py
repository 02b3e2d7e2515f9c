"""The gateway with the real services behind it, on the demo's data: the story that `demo/README.md` tells.

Every question demands the position of the push before it, so an answer has seen it or is refused.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from headwater.common.v1 import common_pb2
from headwater.embedder.v1 import service_pb2 as embedder_pb2, service_pb2_grpc as embedder_grpc
from headwater.identity_graph.v1 import service_pb2 as identity_pb2, service_pb2_grpc as identity_grpc
from headwater.ingest.v1 import events_pb2 as ingest_events_pb2, service_pb2 as ingest_pb2, service_pb2_grpc
from headwater.rag_gateway.v1 import service_pb2, service_pb2_grpc as gateway_grpc
from services.embedded import builds
from services.kernel.log import decode_token, encode_token
from services.kernel.settings import load
from tests.conftest import Running, RunService

DEMO = Path(__file__).parents[2] / "demo"
ADA = "email:ada.lindqvist@fjordmail.example"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Story:
    """The services with the demo's data pushed so far, and the position of the last push."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.token = ""

    async def push(self, phase: str) -> None:
        lines = (DEMO / "changes" / f"{phase}.jsonl").read_bytes().splitlines()
        request = ingest_pb2.PushRawRequest(format="auto", records=lines, origin=phase)
        stub = service_pb2_grpc.IngestServiceStub(self.channel)
        async for response in stub.PushRaw(iter([request])):
            self.saw(response.position_token)

    async def put(self, folder: str) -> None:
        stub = service_pb2_grpc.IngestServiceStub(self.channel)
        for path in sorted((DEMO / folder).iterdir()):
            document = ingest_events_pb2.DocumentChange(
                source="policies", name=path.name, content=path.read_bytes(),
                operation=ingest_events_pb2.DOCUMENT_OPERATION_PUT,
            )  # fmt: skip
            self.saw((await stub.PutDocument(ingest_pb2.PutDocumentRequest(document=document))).position_token)

    def saw(self, token: str) -> None:
        """Join a token with those before it."""
        ends: dict[tuple[str, int], int] = {}
        for one in (self.token, token):
            for place in decode_token(one).offsets if one else ():
                key = (place.topic, place.partition)
                ends[key] = max(place.offset, ends.get(key, 0))
        offsets = [common_pb2.TopicOffset(topic=t, partition=p, offset=end) for (t, p), end in ends.items()]
        self.token = encode_token(common_pb2.Position(offsets=offsets))

    async def ask(self, text: str, asker: str = "", **fields: Any) -> service_pb2.Answer:
        question = service_pb2.Question(text=text, at_least=self.token, **fields)
        question.at_least_timeout.FromSeconds(120)
        if asker:
            kind, _, value = asker.partition(":")
            getattr(question, "as").CopyFrom(common_pb2.Identifier(kind=kind, value=value))
        answer = service_pb2.Answer()
        stub = gateway_grpc.RagGatewayServiceStub(self.channel)
        async for piece in stub.Ask(service_pb2.AskRequest(question=question)):
            if piece.WhichOneof("piece") == "answer":
                answer = piece.answer
        assert all(citation.verified for citation in answer.citations), answer
        return answer

    async def text(self, question: str, asker: str = "") -> str:
        return (await self.ask(question, asker)).text


@pytest.fixture
async def running(run_service: RunService) -> AsyncIterator[Running]:
    tables = load(DEMO / "headwater.toml", {}).tables
    async with run_service(*builds(), settings_tables=tables) as running:
        yield running


@pytest.fixture
async def story(running: Running) -> Story:
    story = Story(running.channel)
    await story.push("00-snapshot")
    await story.put("policies")
    return story


async def test_answers_follow_the_sources_through_the_whole_story(story: Story) -> None:
    where = "Where am I staying, and from when?"
    which = "Which flight am I on, and when does it leave?"
    trips = "Which trips have I booked?"
    answer = await story.text(where, ADA)
    assert all(words in answer for words in ("Casa do Alecrim", "Lisbon", "2027-03-12", "384.00 EUR"))
    assert "2027-03-12 06:40 UTC" in await story.text(which, ADA)
    mt103 = await story.text("How many seats are left on MT103, and what does it cost?")
    assert "seats left 9" in mt103
    assert "204.00 EUR" in mt103
    assert "rooms left 4" in await story.text("How many rooms are left at Casa do Alecrim?")
    assert "MB-70403" not in await story.text(trips, ADA)

    await story.push("10-booking-moved")
    answer = await story.text(where, ADA)
    assert all(words in answer for words in ("Ribeira Azul", "Porto", "2027-03-19", "568.00 EUR"))
    assert "Casa do Alecrim" not in answer
    assert "2027-03-19 07:15 UTC" in await story.text(which, ADA)
    mt103 = await story.text("How many seats are left on MT103, and what does it cost?")
    assert "seats left 2" in mt103
    assert "259.00 EUR" in mt103
    assert "rooms left 5" in await story.text("How many rooms are left at Casa do Alecrim?")
    ribeira = await story.text("What does a night at Ribeira Azul cost, and how many rooms are left?")
    assert "156.00 EUR" in ribeira
    assert "rooms left 5" in ribeira

    await story.push("20-merge")
    assert "MB-70403" in await story.text(trips, ADA)
    await story.push("30-unmerge")
    assert "MB-70403" not in await story.text(trips, ADA)
    assert "MB-70401" in await story.text(trips, ADA)

    assert not (await story.ask("What do I eat?", ADA)).answered
    await story.push("40-drift")
    assert "vegetarian, no nuts" in await story.text("What do I eat?", ADA)
    assert "11 January to 30 June 2027" in await story.text("Can I swim at Szarvas Thermal House in February 2027?")
    assert "4.5" in await story.text("How many stars has Ribeira Azul?")

    assert "24 hours" in await story.text("How long can I cancel free of charge after booking?")
    cancelled = "I cancel my hotel 10 days before check-in: what do I get back?"
    assert "50 %" in await story.text(cancelled)
    await story.put("policies-amended")
    assert "48 hours" in await story.text("How long can I cancel free of charge after booking?")
    assert "70 %" in await story.text(cancelled)
    assert "5 days" in await story.text("How soon do you send a refund?")


ANSWERED = [
    ("Can my pug fly in the hold in July?", "1 May to 30 September"),
    ("What does an extra bag cost at the airport?", "60"),
    ("How many points make Gold?", "30,000"),
    ("What am I owed when MT201 is five hours late?", "600 euros"),
    ("Which hotel's kitchen uses no nuts?", "Ribeira Azul"),
    ("Do Irish citizens need an ETA for the United Kingdom?", "Irish citizens need none"),
    ("Which hotel wakes me for the aurora?", "Norðurljós Lodge"),
    ("Can I pay with Swish?", "Swish"),
    ("When does the gate close?", "15 minutes"),
    ("Can I get a refund if I am ill?", "90 %"),
    ("How much does it cost to bring a bicycle?", "65"),
    ("What is the emergency line number?", "+46 8 505 218 99"),
    ("When is breakfast served at Casa do Alecrim?", "11:00"),
    ("Do children pay the full price?", "75 percent"),
    ("How long are prices held?", "20 minutes"),
    ("Do I need a visa for Vietnam?", "e-visa"),
]
UNANSWERED = [
    "What is the capital of Australia?",
    "Who won the world cup in 2018?",
    "How much does MT999 cost?",
    "How many rooms are left at Hotel Atlantis?",
    "Do you sell cruises to Antarctica?",
]


async def test_the_documents_answer_and_what_they_do_not_hold_is_not_answered(story: Story) -> None:
    wrong = [question for question, says in ANSWERED if says not in await story.text(question)]
    assert not wrong
    invented = [question for question in UNANSWERED if (await story.ask(question)).answered]
    assert not invented


async def test_the_citations_of_every_answer_resolve(story: Story) -> None:
    stub = embedder_grpc.EmbedderServiceStub(story.channel)
    for question, _ in ANSWERED:
        for citation in (await story.ask(question)).citations:
            document = await stub.GetDocument(
                embedder_pb2.GetDocumentRequest(document_id=citation.document_id, version=citation.version)
            )
            assert document.text[citation.start : citation.end] == citation.quote


async def test_after_an_erasure_nothing_personal_is_answered_and_the_log_has_forgotten_the_turns(
    story: Story, running: Running
) -> None:
    assert "gold" in await story.text("What is my tier?", ADA)
    stub = identity_grpc.IdentityGraphServiceStub(story.channel)
    kind, _, value = ADA.partition(":")
    erased = await stub.Erase(identity_pb2.EraseRequest(identifier=common_pb2.Identifier(kind=kind, value=value)))
    request = identity_pb2.GetErasureRequest(erasure_id=erased.erasure_id)
    log = running.platform.log
    seen = {}
    while True:
        seen = {("erasures.done", 0): (await log.end("erasures.done"))[0]}
        state = await stub.GetErasure(request)
        if not state.waiting_for:
            break
        assert await log.wait_for(["erasures.done"], seen, 60)
    assert "rag_gateway" in {answer.service for answer in state.acknowledgements}
    assert all(not any(answer.remaining.values()) for answer in state.acknowledgements)
    assert not (await story.ask("What is my tier?", ADA)).answered
    for partition in range(log.partitions("conversations")):
        for record in await log.read("conversations", partition, 0):
            assert b"Your tier: gold" not in (record.value or b"")


async def test_rows_are_found_by_their_key_in_whichever_table_they_are(story: Story) -> None:
    await story.ask("hello?")  # everything is searchable then
    stub = embedder_grpc.EmbedderServiceStub(story.channel)
    found = await stub.GetRows(embedder_pb2.GetRowsRequest(keys=["LIS-ALE", "MT101", "NOWHERE"]))
    assert [hit.document_id for hit in found.hits] == ["inventory/flights/MT101", "inventory/hotels/LIS-ALE"]
    assert "rooms_left" in found.hits[1].live_json
    assert not (await stub.GetRows(embedder_pb2.GetRowsRequest(tenant="other", keys=["LIS-ALE"]))).hits
