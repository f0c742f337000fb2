"""The status page in a real browser, against a real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.serving.server.chromium import CHROMIUM, Page, chromium
from tests.serving.server.site import site, site_with_a_worker
from tests.serving.server.test_status import ALICE, HOSTILE, KEYS, under_way

from wanspec.serving.server.status import Access

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

REFUSAL = "401 (Unauthorized)"
"""Chromium's own words for an answer that the page expects."""
HAS_TREE = "document.querySelectorAll('#tree .node.worker').length && document.querySelectorAll('#tree .node.head').length === 1"


async def give(page: Page, key: str) -> None:
    """Type a key in."""
    await page.until("!document.getElementById('key-form').hidden")
    await page.look(f"document.getElementById('key').value = '{key}'; document.querySelector('#key-form button').click()")


async def test_markup_in_a_workers_name_and_in_tokens_is_text_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        site_with_a_worker("remote", name=HOSTILE, access=Access(shows_text=True)) as place,
        under_way(place),
        chromium(tmp_path) as page,
    ):
        monkeypatch.setattr(place.service, "decode", lambda _: HOSTILE)
        await page.go(place.url)
        await page.until(HAS_TREE)
        await page.until("document.querySelector('#tree .worker title') !== null")
        assert await page.look("document.querySelector('#workers td bdi').textContent") == HOSTILE
        assert await page.look("document.querySelectorAll('img, iframe, object, main script').length") == 0
        assert await page.look("document.querySelector('#requests').textContent.includes('request--0')")
        assert await page.look("document.querySelector('#tree .worker title').textContent.startsWith('<img·src=x·onerror=alert(1)>,')")
        assert await page.look("document.querySelector('#tree .worker .token').textContent") == "<img·src…"
        assert page.problems == []


async def test_what_slips_through_anyway_is_stopped_by_the_policy(tmp_path: Path) -> None:
    async with site() as place, chromium(tmp_path) as page:
        await page.go(place.url)
        await page.until("!document.getElementById('content').hidden")
        for attempt in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').text = 'window.caught = 1'"):
            assert (
                await page.look(f"(() => {{ try {{ {attempt}; return 'done' }} catch (error) {{ return error.name }} }})()") == "TypeError"
            )
        sent = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')"
        assert await page.look(sent) == "stopped"
        assert any("violates the following Content Security Policy" in problem for problem in page.problems)


async def test_the_key_is_asked_for_and_kept_in_the_tab_alone(tmp_path: Path) -> None:
    async with site_with_a_worker("remote", keys=KEYS) as place, under_way(place, key=ALICE), chromium(tmp_path) as page:
        await page.go(place.url)
        await give(page, "wrong-wrong-wrong-wrong")
        await page.until("document.getElementById('notice').textContent === 'This key is not valid.'")
        assert await page.look("document.getElementById('content').hidden")
        await give(page, ALICE)
        await page.until(HAS_TREE)
        kept = "[localStorage.length, document.cookie, location.href, Object.keys(sessionStorage).length]"
        assert await page.look(kept) == [0, "", f"{place.url}/", 1]
        assert ALICE not in await page.look("document.documentElement.outerHTML")
        await page.look("document.getElementById('forget').click()")
        await page.until("!document.getElementById('key-form').hidden")
        assert await page.look("sessionStorage.length") == 0
        assert all(REFUSAL in problem for problem in page.problems)


async def test_it_fits_a_phone_and_draws_every_part(tmp_path: Path) -> None:
    async with site_with_a_worker("remote") as place, under_way(place, number=2), chromium(tmp_path) as page:
        await page.size(360, 740)
        await page.go(place.url)
        await page.until(f"{HAS_TREE} && document.querySelectorAll('#requests tbody tr').length === 2")
        await page.until("document.querySelector('#charts .line').getAttribute('d').includes('L')")
        assert await page.look("document.documentElement.scrollWidth") == 360
        assert await page.look("document.querySelectorAll('#charts figure').length") == 4
        assert await page.look("/^[0-9]+$/.test(document.querySelector('#tree .head .token').textContent)")  # an id, not its text
        assert len(await page.picture()) > 10_000
        assert page.problems == []


LONG_NAME = "a-quiet-campus-in-the-north-with-a-long-name-worker-17.example.org"
BROKEN = """[...document.querySelectorAll('th, td:not(:first-child), #load, .badge')].filter((cell) => {
  if (cell.querySelector('bdi')) return false;
  const range = document.createRange();
  range.selectNodeContents(cell);
  const boxes = [...range.getClientRects()].filter((box) => box.width);
  return boxes.length > 1 && Math.max(...boxes.map((box) => box.top)) >= Math.min(...boxes.map((box) => box.bottom));
}).map((cell) => cell.textContent)"""
"""Cells of figures that stand in more than one line."""


@pytest.mark.parametrize("width", [1400, 400])
async def test_a_long_name_breaks_no_figure_and_no_word(width: int, tmp_path: Path) -> None:
    labels = ("region=eu-north", "gpu=t4", "rack=12", "owner=physics")
    async with site_with_a_worker("remote", name=LONG_NAME, labels=labels) as place, under_way(place, number=2), chromium(tmp_path) as page:
        await page.size(width, 900)
        await page.go(place.url)
        await page.until(HAS_TREE)
        assert await page.look("document.documentElement.scrollWidth") == width
        assert await page.look(BROKEN) == []
        assert page.problems == []


async def test_the_head_and_the_frame_stay_where_they_are_while_text_is_written(tmp_path: Path) -> None:
    where = "[document.querySelector('#tree .head').getBoundingClientRect().x, document.querySelector('#tree').clientHeight]"
    async with site_with_a_worker("remote") as place, under_way(place), chromium(tmp_path) as page:
        await page.size(1400, 900)
        await page.go(place.url)
        await page.until(HAS_TREE)
        first, text = await page.look(where), await page.look("document.querySelector('#tree').textContent")
        await page.until(f"document.querySelector('#tree').textContent !== {text!r}")
        assert await page.look(where) == first


async def test_a_failed_engine_says_why_and_what_was_before_is_told(tmp_path: Path) -> None:
    async with site_with_a_worker("remote", drain_s=30) as place, chromium(tmp_path) as page:
        await page.go(place.url)
        await page.until("document.querySelectorAll('#workers tbody tr').length === 1")
        await place.engine.drain("done")
        place.service.metrics.refused(429)
        await page.until(
            "/worker campus left \\d+ s ago .closed.*by status: 429: 1up for .* version/.test(byId('lately').textContent)".replace(
                "byId('lately')", "document.getElementById('lately')"
            )
        )
        place.engine._fail(OSError(28, "No space left on device"))
        await page.until("document.getElementById('failure').textContent.startsWith('The engine has failed: No space left on device.')")
        assert await page.look("document.getElementById('no-workers').hidden && document.getElementById('state').textContent === 'failed'")
        assert await page.look("document.getElementById('content').classList.contains('stale')")


async def test_another_request_is_chosen_by_its_name(tmp_path: Path) -> None:
    async with site_with_a_worker("remote") as place, under_way(place, number=2), chromium(tmp_path) as page:
        await page.go(place.url)
        await page.until(f"{HAS_TREE} && document.querySelectorAll('#requests button').length === 2")
        other = "document.querySelector('#requests button[aria-pressed=false]')"
        name = await page.look(f"{other}.textContent")
        await page.look(f"{other}.click()")
        await page.until(f"document.getElementById('tree-of').textContent.includes('{name}')")
        assert await page.look("document.querySelector('#requests button[aria-pressed=true]').textContent") == name


async def test_a_server_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    async with chromium(tmp_path) as page:
        async with site() as place:
            await page.go(place.url)
            await page.until("!document.getElementById('content').hidden")
        await page.until("document.getElementById('notice').textContent.startsWith('No news from the server')")
