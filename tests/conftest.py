"What tests share: a Ctrl-C that is heard, and a real browser, where there is one."
import shutil
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:   # tests in the background: what they start would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def browser():
    "Chromium, of the system or playwright's own."
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        try: running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error: pytest.skip(f"no browser that starts: {error.message.splitlines()[0]}")
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    "Open a page in a window of its own; whatever its console says or does not load is an error in the end."
    windows, said = [], []

    def visit(path, **window):
        page = browser.new_context(**window).new_page()
        windows.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:100]}"))
        page.on("request", lambda request: said.append(f"asks for {request.url}")
                if not request.url.startswith(("file:", "data:")) else None)
        page.goto(f"file://{path}")
        return page

    yield visit
    for page in windows: page.context.close()
    assert said == []
