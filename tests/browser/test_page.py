"""The page in a real browser: ask, read, open a citation, rate, watch; on the gateway's real HTTP edge."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.ingest.v1 import events_pb2 as ingest_pb2
from services.kernel import topics
from services.kernel.http_server import listening
from services.kernel.log import key_of, message_of
from services.rag_gateway.app import build
from services.rag_gateway.http_api import build_http
from tests.conftest import Running, RunService
from tests.contract.test_rag_gateway_api import ALECRIM, REFUNDS, ada
from tests.unit.rag_gateway.peer_doubles import Document, World

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver: install chromium and chromium-driver"
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WAIT_S = 20
# A script in a document, a name or a question is shown, and never run.
ATTACK = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


class Browser:
    """A browser, driven from the event loop that also serves the page: every call waits in a thread."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    async def run(self, script: str) -> Any:
        """Run JavaScript in the page."""
        return await asyncio.to_thread(self.driver.execute_script, script)

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self.driver.get, url)

    async def until(self, script: str) -> Any:
        """Wait until JavaScript returns something true."""
        from selenium.webdriver.support.ui import WebDriverWait

        waited = WebDriverWait(self.driver, WAIT_S)
        return await asyncio.to_thread(waited.until, lambda driver: driver.execute_script(script), script)

    async def keys(self, selector: str, *keys: str) -> None:
        from selenium.webdriver.common.by import By

        def send() -> None:
            self.driver.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)

        await asyncio.to_thread(send)

    async def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By

        await asyncio.to_thread(lambda: self.driver.find_element(By.CSS_SELECTOR, selector).click())

    async def text(self, selector: str) -> str:
        return str(await self.run(f"return document.querySelector({selector!r}).innerText"))

    async def ask(self, question: str) -> None:
        """Ask, and wait for the whole answer."""
        from selenium.webdriver.common.keys import Keys

        count = await self.run("return document.querySelectorAll('.turn').length")
        await self.keys("#question", question, Keys.ENTER)
        await self.until(f"return document.querySelectorAll('.turn:not(.waiting)').length > {count}")


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[int, int], Browser]]:
    from selenium import webdriver

    drivers: list[Any] = []

    def start(width: int, height: int) -> Browser:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        folder = tmp_path / f"browser-{len(drivers)}"
        for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        # A window is never narrower than some 500 pixels: a small screen has to be emulated.
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": width, "height": height}})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        drivers.append(driver)
        return Browser(driver)

    yield start
    for driver in drivers:
        driver.quit()


@pytest.fixture
def world() -> World:
    world = World()
    world.add(REFUNDS, ALECRIM, Document("web/evil.html", f"The evil clause says {ATTACK} and more.", f"Evil {ATTACK}"))
    world.profiles["email:ada@example.com"] = ada()
    return world


@pytest.fixture
async def served(run_service: RunService, world: World) -> AsyncIterator[tuple[Running, str]]:
    async with (
        run_service(build, *world.builds) as running,
        listening(build_http(running.platform), "127.0.0.1:0") as url,
    ):
        yield running, url


Launch = Callable[[int, int], Browser]


async def test_a_question_is_answered_its_citation_opens_the_quoted_words_and_it_can_be_rated(
    served: tuple[Running, str], world: World, launch: Launch
) -> None:
    _, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    await browser.ask("Within how many hours can I cancel a booking free of charge?")
    assert "within 24 hours" in await browser.text(".turn .text")
    assert await browser.text(".citations .tag") == "verified"
    assert "extractive" in await browser.text(".stamp")
    assert "up to date" in await browser.text(".stamp")
    await browser.click(".cite")
    assert "within 24 hours" in await browser.until("return document.querySelector('#reader[open] mark')?.innerText")
    assert "We send the money" in await browser.text("#reader-text")
    await browser.click("#reader-close")
    await browser.click('.vote[data-up="false"]')
    await browser.until("return document.querySelector('.vote[data-up=\"false\"]').ariaPressed === 'true'")
    (rating,) = world.ratings
    assert rating.up is False
    assert rating.answer_id == await browser.run("return document.querySelector('.turn').dataset.answer")


async def test_the_profile_shows_where_each_field_is_from_and_answers_own_questions(
    served: tuple[Running, str], launch: Launch
) -> None:
    from selenium.webdriver.common.keys import Keys

    _, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    await browser.keys("#as", "email:ada@example.com", Keys.TAB)
    shown = await browser.until("return document.querySelector('#profile .fields')?.innerText")
    assert "gold" in shown
    assert "crm/customers/1001" in shown
    await browser.ask("What is my tier?")
    assert "gold" in await browser.text(".turn .text")
    await browser.click(".cite")
    assert "gold" in await browser.until("return document.querySelector('#reader[open] mark')?.innerText")


async def test_freshness_and_live_events_are_shown_as_they_happen(served: tuple[Running, str], launch: Launch) -> None:
    running, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    head = await browser.until("return document.querySelector('.fresh thead')?.innerText")
    assert all(store in head.lower() for store in ("profile", "knowledge", "identity"))
    change = ingest_pb2.Change(
        tenant="default", source="crm", entity="customers", record="crm/customers/77",
        operation=ingest_pb2.OPERATION_UPDATE, before_json='{"tier": "silver"}', after_json='{"tier": "gold"}',
    )  # fmt: skip
    await running.platform.log.append([message_of(topics.CHANGES, key_of("", "crm/customers/77"), change, 5)])
    item = await browser.until(
        "return [...document.querySelectorAll('#events li')].find(e => e.innerText.includes('/77'))?.innerText"
    )
    assert "silver → gold" in item


async def test_a_conversation_is_there_again_after_a_reload_and_new_begins_another(
    served: tuple[Running, str], launch: Launch
) -> None:
    _, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    await browser.ask("When do you send the money?")
    first = await browser.run("return document.querySelector('.turn').dataset.answer")
    await browser.open(url)
    await browser.until(f"return document.querySelector('.turn')?.dataset.answer === {first!r}")
    assert "7 days" in await browser.text(".turn .text")
    await browser.click("#new")
    assert await browser.run("return document.querySelectorAll('.turn').length") == 0


async def test_what_documents_and_questions_say_is_shown_and_never_run(
    served: tuple[Running, str], launch: Launch
) -> None:
    _, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    await browser.ask(f"What does the evil clause say? {ATTACK}")
    assert "<script>" in await browser.text(".turn .asked")
    assert "onerror" in await browser.text(".turn .text")
    await browser.click(".cite")
    await browser.until("return document.querySelector('#reader[open]')")
    assert await browser.run("return document.title") == "Headwater"
    assert await browser.run("return document.querySelectorAll('img[src=x], .turn script').length") == 0


async def test_a_refusal_says_why(served: tuple[Running, str], launch: Launch) -> None:
    _, url = served
    browser = launch(1360, 860)
    await browser.open(url)
    await browser.run("document.querySelector('#at-least').value = 'no token'")
    await browser.ask("When do you send the money?")
    assert "position token" in await browser.text(".turn.failed .text")


async def test_the_page_fits_a_narrow_screen_and_complains_of_nothing(
    served: tuple[Running, str], launch: Launch
) -> None:
    _, url = served
    browser = launch(400, 800)
    await browser.open(url)
    await browser.ask("Within how many hours can I cancel a booking free of charge?")
    await browser.until("return document.querySelector('.fresh thead')")
    wide = await browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    log = await asyncio.to_thread(browser.driver.get_log, "browser")
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []
    unnamed = await browser.run(
        "return [...document.querySelectorAll('button, input, textarea')].filter(e => e.checkVisibility()"
        " && !(e.ariaLabel || e.innerText.trim() || e.labels?.length)).length"
    )
    assert unnamed == 0
