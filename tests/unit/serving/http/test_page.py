"""The search page in a real browser."""

import pytest

pytest.importorskip("fastapi")

from helpers import chromium as browsers
from helpers.serving import WebServer

pytestmark = pytest.mark.skipif(
    bool(browsers.missing()),
    reason=f"SKIPPED LOUDLY: the page is not tested, not installed: {browsers.missing()}",
)


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    with WebServer.start(folder) as server:
        server.client.post("/v1/tasks", json={"task": "asking", "bundle": "query-only"})
        with server.listening() as address:
            server.address = address
            yield server


@pytest.fixture(scope="module")
def window():
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def page(web, window):
    window.open(web.address)
    window.run("sessionStorage.clear()")
    window.open(web.address)
    window.wait("return document.querySelectorAll('#tasks input').length == 3")
    return window


def ask(page, text):
    page.run("document.getElementById('query').focus()")
    page.run("document.getElementById('query').select()")
    page.keys(text + browsers.KEYS["enter"])
    page.wait("return /tasks? in \\d+ ms/.test(document.getElementById('status').textContent)")


def hits(page, task):
    script = (
        f"return [...document.querySelectorAll('.column[data-task={task}] .hit')].map(h => "
        "[h.dataset.id, h.querySelector('.rank').textContent, "
        "h.querySelector('.score').textContent, (h.querySelector('.move')||{}).textContent||''])"
    )
    return page.run(script)


def test_results_of_several_tasks_stand_side_by_side_with_moves_in_rank(page, web):
    ask(page, "the red boat")

    shown = {}
    for task in ("backbone", "asking"):
        body = {"task": task, "text": "the red boat", "k": 10}
        reply = web.client.post("/v1/search", json=body).json()
        shown[task] = [hit["id"] for hit in reply["hits"]]
        rows = hits(page, task)
        assert [row[0] for row in rows] == shown[task]
        assert [row[1] for row in rows] == [str(n) for n in range(1, 11)]
        assert [float(row[2]) for row in rows] == pytest.approx(
            [hit["score"] for hit in reply["hits"]], abs=2e-3
        )
    expected = []
    for rank, name in enumerate(shown["asking"]):
        before = shown["backbone"].index(name) if name in shown["backbone"] else None
        if before is None:
            expected.append("new")
        elif before == rank:
            expected.append("=")
        else:
            expected.append(("▲" if before > rank else "▼") + str(abs(before - rank)))
    assert [row[3] for row in hits(page, "asking")] == expected
    assert len(set(expected)) > 1
    assert {row[3] for row in hits(page, "backbone")} == {""}
    latency = page.run("return document.querySelector('.column .latency').textContent")
    assert latency.endswith(" ms")


def test_everything_can_be_done_from_the_keyboard(page):
    ask(page, "green house")
    # Down from the query to the first hit, on to the second, right to the other column, and back.
    page.keys(browsers.KEYS["down"] * 2)
    focused = (
        "const a = document.activeElement;return [a.closest('.column')?.dataset.task, a.dataset.id]"
    )
    assert page.run(focused) == ["backbone", hits(page, "backbone")[1][0]]
    page.keys(browsers.KEYS["right"])
    task, name = page.run(focused)
    assert (task, name) == ("asking", hits(page, "asking")[1][0])
    lit = page.run("return [...document.querySelectorAll('.hit.same')].map(h => h.dataset.id)")
    assert set(lit) == {name}
    # A figure takes a task out, and the results follow.
    page.keys("2")
    page.wait("return document.querySelectorAll('.column').length == 2")
    page.keys("/")
    assert page.run("return document.activeElement.id") == "query"
    page.keys("12/")
    assert page.run("return document.getElementById('query').value") == "12/"
    page.keys(browsers.KEYS["escape"])
    assert page.run("return document.activeElement.id") == "query"


def test_only_tasks_that_can_search_are_offered(page):
    offered = "return [...document.querySelectorAll('#tasks input')].map(i => i.value)"
    assert page.run(offered) == ["backbone", "asking", "one"]


@pytest.mark.parametrize("width", [1400, 390])
def test_the_compare_view_fits_into_wide_and_narrow_windows(page, tmp_path, width):
    page.resize(width, 844)
    try:
        ask(page, "the red boat")
        outside = page.run(
            "return [...document.querySelectorAll('header *, form *, fieldset *, #status, footer')]"
            ".filter(e => { const box = e.getBoundingClientRect();"
            "return box.width && (box.left < 0 || box.right > innerWidth + 1); })"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []
        assert page.run("return document.documentElement.scrollWidth") <= width
        # Every column can be brought into view whole, and holds its hits.
        columns = page.run(
            "return [...document.querySelectorAll('.column')].map(column => {"
            "column.scrollIntoView({inline: 'center', block: 'nearest'});"
            "const box = column.getBoundingClientRect();"
            "const wide = [...column.querySelectorAll('.hit')].filter("
            "  hit => hit.getBoundingClientRect().right > box.right + 1).length;"
            "return [box.left >= 0, box.right <= innerWidth + 1, box.width > 250, wide]; })"
        )
        assert columns == [[True, True, True, 0]] * 3
        page.run("document.getElementById('columns').scrollLeft = 0; scrollTo(0, 0)")
        picture = page.screenshot()
        (tmp_path / f"page-{width}.png").write_bytes(picture)
        assert int.from_bytes(picture[16:20], "big") == width
    finally:
        page.resize(1400, 900)


def test_the_page_of_addresses_shows_all_of_them_and_asks_the_server(window, web):
    window.open(f"{web.address}/docs")
    window.wait("return document.querySelectorAll('details').length > 20")
    ask = (
        "const found = [...document.querySelectorAll('details')].find(d =>"
        " d.querySelector('summary').textContent == 'GET/health');"
        "found.open = true; found.querySelector('button').click(); window.asked = found"
    )
    window.run(ask)
    said = window.wait("return window.asked.querySelector('pre').textContent")
    assert said == '200\n{"status":"ok"}'
    shown = window.run("return document.body.textContent")
    assert "Fusion method: by ranks" in shown
    assert [e for e in window.log() if e["level"] == "SEVERE"] == []


def test_broken_session_storage_does_not_stop_the_page(page, web):
    page.run("sessionStorage.setItem('tasks', '{broken')")
    page.open(web.address)
    page.wait("return document.querySelectorAll('#tasks input').length == 3")


def test_texts_from_an_index_are_shown_as_text_never_as_markup(page):
    page.run(
        "const hit = {id: 'a', rank: 1, score: 1, title: '<img src=x onerror=window.bad=1>',"
        " text: '<script>window.bad=1</script>'};"
        "show([{task: 'x', milliseconds: 1, reply: {task: 'x', index: 'i', hits: [hit]}}])"
    )
    assert page.run("return [document.querySelector('.hit img'), window.bad ?? null]") == [
        None,
        None,
    ]
    assert "<img" in page.run("return document.querySelector('.hit .title').textContent")


def test_the_load_panel_moves(page, web):
    for _ in range(3):
        web.client.post("/v1/embeddings", json={"model": "one", "input": ["moon", "sun"]})
    page.wait("return document.getElementById('totals').textContent.includes('batches/s')")
    rows = page.wait(
        "const r = [...document.querySelectorAll('#rows tr')].map(r => r.dataset.task);"
        "return r.includes('one') && r"
    )
    assert "one" in rows


def test_nothing_comes_from_outside_and_the_console_is_silent(page, web):
    ask(page, "river")
    loaded = page.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert all(name.startswith(web.address) for name in loaded)
    # What the server refuses on purpose (a task without index) is a line in the console, no fault.
    faults = [e for e in page.log() if e["level"] == "SEVERE" and "409" not in e["message"]]
    assert faults == []
    assert page.screenshot()[:4] == b"\x89PNG"
