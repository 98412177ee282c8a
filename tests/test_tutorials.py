"""The tutorials as a reader meets them. `nbdev_test` runs all their cells; here is what it does not see: whether a command
ended with a complaint, whether JupyterLab opens a page without a question, and one of them run there to its end.
"""
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from book_rules import ROOT, cells, form

TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_opens_and_no_command_complained(page):
    assert form(cells(page)) == [] and cells(page)[0]["cell_type"] == "markdown"
    said = [line for cell in cells(page) for output in cell.get("outputs", []) for line in output.get("text", [])]
    refused = [line for line in said if re.match(r"pzsl[ \w]*: |.*command not found", line)]
    assert [line for line in refused if "cuda" not in line] == []   # one page shows how a missing GPU is refused
    kernel = json.loads(page.read_text(encoding="utf-8"))["metadata"].get("kernelspec", {})
    assert kernel.get("name") == "python3", "without it JupyterLab asks every reader which kernel to take"


@pytest.fixture
def lab(tmp_path):
    "Address of a page in a JupyterLab with an empty folder and settings of its own."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    words = ["lab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=pzsl"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyter", *words], cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=pzsl").close(); break
            except OSError: time.sleep(.5)
        yield f"http://127.0.0.1:{port}/lab/tree/page.ipynb?token=pzsl"
    finally:
        server.terminate()
        server.wait(30)


def test_runs_in_jupyterlab(browser, lab, tmp_path):
    file, book = tmp_path / "page.ipynb", nbformat.read(ROOT / "nbs" / "tutorials" / "add_a_method.ipynb", 4)
    for cell in book.cells: cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    nbformat.write(book, file)
    def code():
        "The code cells that JupyterLab has saved; none while it is writing the file."
        try: return [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
        except nbformat.reader.NotJSONError: return []
    page = browser.new_page()
    page.goto(lab)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
    page.get_by_text("| Idle").wait_for(timeout=120_000)   # Run All before there is a kernel asks for one
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(90):   # a cell out of sight is not in the page; the file that JupyterLab saves has them all
        page.wait_for_timeout(2000)
        page.keyboard.press("Control+s")
        if (cells := code()) and all(cell.execution_count for cell in cells): break
    assert cells and all(cell.execution_count for cell in cells), "not all cells were run"
    assert cells[-1].outputs and not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
