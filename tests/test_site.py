"""The documentation site in a real browser: nothing broken, nothing fetched from elsewhere, nothing wider than a phone.

`PZSL_SITE` names a built site; without it, `.ci/docs` builds one. Without a browser, everything here is skipped.
"""
import contextlib
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from book_rules import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install '.[dev]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")

FACTS = """() => ({
  ids: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
  links: [...document.querySelectorAll("a[href]")].map(a => a.href),
  blank: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.currentSrc || i.src),
})"""
WIDTH = "() => document.documentElement.scrollWidth"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words): pass


@contextlib.contextmanager
def served(folder: Path):
    "Address of a folder, served on this machine while the block lasts."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"]*(os.geteuid() == 0))
        yield opened
        opened.close()


def look(browser, folder: Path) -> dict[str, list[str]]:
    "Every page of a site, at the width of a desk and of a phone: complaints by kind."
    found = {"errors": [], "failed": [], "elsewhere": [], "blank": [], "wide": [], "dead": []}
    with served(folder) as address, contextlib.closing(browser.new_page()) as page:
        here = lambda: page.url.removeprefix(address)
        page.on("console", lambda message: message.type == "error" and found["errors"].append(f"{here()}: {message.text}"))
        page.on("pageerror", lambda error: found["errors"].append(f"{here()}: {error}"))
        page.on("requestfailed", lambda request: request.failure != "net::ERR_ABORTED"   # the page was left before it came
                and found["failed"].append(f"{here()}: {request.url}"))
        page.on("response", lambda answer: answer.status >= 400 and found["failed"].append(f"{here()}: {answer.url}"))
        page.on("request", lambda request: request.url.startswith((address, "data:", "blob:"))
                or found["elsewhere"].append(f"{here()}: {request.url}"))
        facts = {}
        for file in sorted(folder.rglob("*.html")):
            name = file.relative_to(folder).as_posix()
            page.set_viewport_size({"width": 1280, "height": 800})
            page.goto(address + name, wait_until="load")
            facts[name] = page.evaluate(FACTS)
            found["blank"] += [f"{name}: {source[:200]}" for source in facts[name]["blank"]]
            page.set_viewport_size({"width": 390, "height": 844})
            if (width := page.evaluate(WIDTH)) > 390:
                found["wide"].append(f"{name}: {width}")
    for name, fact in facts.items():
        for link in {link for link in fact["links"] if link.startswith(address)}:
            target, _, anchor = link.removeprefix(address).partition("#")
            target = target.partition("?")[0] or "index.html"
            if anchor and target in facts and anchor not in facts[target]["ids"] or not (folder / target).is_file():
                found["dead"].append(f"{name}: {target}#{anchor}")
    return found


@pytest.fixture(scope="module")
def site(browser) -> Path:
    if "PZSL_SITE" in os.environ:
        return Path(os.environ["PZSL_SITE"])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", ".ci/docs"], cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_site"


def test_every_page_is_whole(browser, site):
    assert len([*site.rglob("*.html")]) > 50
    assert look(browser, site) == {"errors": [], "failed": [], "elsewhere": [], "blank": [], "wide": [], "dead": []}


def test_a_breach_is_seen(browser, tmp_path):
    (tmp_path / "index.html").write_text("""<!doctype html><link rel="icon" href="data:,"><p style="width: 500px">wide
<a href="#gone">no anchor</a> <a href="gone.html">no page</a> <img src="gone.png"> <script>throw 1</script>
<img src="http://elsewhere.invalid/x.png">""")
    assert {kind: len(found) for kind, found in look(browser, tmp_path).items()} == {
        "errors": 3, "failed": 2, "elsewhere": 1, "blank": 2, "wide": 1, "dead": 2}


def test_search_finds_mining(browser, site):
    with served(site) as address, contextlib.closing(browser.new_page()) as page:
        page.goto(address)
        page.fill("input[name=q]", "mining")
        page.press("input[name=q]", "Enter")
        page.wait_for_selector("#search-results a[href*='30_mining']", timeout=10_000)


def test_beliefs_settle_on_the_idea_page(browser, site):
    with served(site) as address, contextlib.closing(browser.new_page()) as page:
        page.goto(address + "idea.html")
        true = "() => [...document.querySelectorAll('#settling .true i')].map(bar => parseFloat(bar.style.width))"
        before = page.evaluate(true)
        page.eval_on_selector("#settling input", "slider => { slider.value = slider.max; slider.dispatchEvent(new Event('input')) }")
        after = page.evaluate(true)
        assert sum(after) > sum(before) and page.inner_text("#settling output").startswith("after epoch")
