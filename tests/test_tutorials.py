"""The tutorials as a reader meets them. `nbdev_test` runs all their cells; what it does not see is checked here: the command
lines they show exist, none ends with a complaint, and one of them runs to its end in a real JupyterLab.
"""
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
import typer

from book_rules import ROOT, cells
from pzsl_nb.cli import app

TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
COMMANDS = typer.main.get_command(app).commands


def unknown(source: str) -> list[str]:
    "Commands and options in a cell, or in a fence of markdown, that `pzsl` does not have."
    lines = re.findall(r"(?:^!?|-m )(?:pzsl|pzsl_nb\.cli) +([a-z]+.*)$", source, re.M)
    found = []
    for name, *words in (shlex.split(line, comments=True) for line in lines):
        options = {text for option in getattr(COMMANDS.get(name), "params", []) for text in (*option.opts, *option.secondary_opts)}
        found += [name]*(name not in COMMANDS) + [word for word in words if word.startswith("--") and word not in options]
    return found


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_commands_exist_and_did_their_work(page):
    assert [word for cell in cells(page) for word in unknown(cell["source"])] == []
    said = [line for cell in cells(page) for output in cell.get("outputs", []) for line in output.get("text", [])]
    refused = [line for line in said if re.match(r"pzsl[ \w]*: |.*command not found", line)]
    assert [line for line in refused if "cuda" not in line] == []   # one page shows how a missing GPU is refused


def test_a_wrong_command_would_be_seen():
    assert unknown("!pzsl run --data x --sede 1\n!pzsl rum\n... -m pzsl_nb.cli run --epoch 3") == ["--sede", "rum", "--epoch"]


@pytest.fixture
def lab(tmp_path):
    "Address and token of a JupyterLab in an empty folder, with settings of its own."
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    env = os.environ | {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + env["PATH"]
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
    file = tmp_path / "page.ipynb"
    shutil.copy(ROOT / "nbs" / "tutorials" / "add_a_method.ipynb", file)
    clean = nbformat.read(file, 4)
    for cell in clean.cells: cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    nbformat.write(clean, file)
    code = lambda: [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    page = browser.new_page()
    page.goto(lab)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(150):   # a cell out of sight is not in the page; the file that JupyterLab saves has them all
        page.wait_for_timeout(2000)
        page.keyboard.press("Control+s")
        if all(cell["execution_count"] for cell in code()): break
    page.close()
    assert all(cell["execution_count"] for cell in code()), "not all cells were run"
    assert code()[-1]["outputs"] and [o for cell in code() for o in cell["outputs"] if o["output_type"] == "error"] == []
