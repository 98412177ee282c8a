"""The book obeys its own rules, and each rule is seen to catch what it is for."""
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import book_rules as rules
from book_rules import ROOT, cells, notebooks

PAGES, CHAPTERS = notebooks(), [page for page in notebooks() if rules.number(page.stem) is not None]
MODULES = sorted(path for path in (ROOT / "pzsl_nb").glob("*.py") if path.name not in ("__init__.py", "_modidx.py"))
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
chapters = pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
modules = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)


def code(page: Path) -> list[str]:
    return [cell["source"] for cell in cells(page) if cell["cell_type"] == "code"]


def module_numbers() -> dict[str, int]:
    "Number of the notebook that exports each module."
    found = {}
    for page in CHAPTERS:
        for source in code(page):
            if match := re.search(r"^#\|\s*default_exp\s+(\S+)", source, re.M):
                found[match[1]] = rules.number(page.stem)
    return found


NUMBERS = module_numbers()


def test_there_is_a_book():
    assert len(CHAPTERS) >= 5 and len(MODULES) >= 5
    assert len({rules.number(page.stem) for page in CHAPTERS}) == len(CHAPTERS), "two chapters share a number"
    assert {path.stem for path in MODULES} == set(NUMBERS), "modules and notebooks do not match one to one"


# Each page

@pages
def test_imports_only_smaller_numbers(page):
    assert [c for source in code(page) for c in rules.upward_imports(page.stem, source, NUMBERS)] == []


@pages
def test_no_star_imports(page):
    exported_only = rules.number(page.stem) is None   # a tutorial may be written as a user would
    sources = [source for source in code(page) if rules.is_exported(source) or not exported_only]
    assert [c for source in sources for c in rules.star_imports(source)] == []


@pages
def test_carries_outputs(page):
    assert rules.missing_outputs(cells(page)) == []


@pages
def test_links_lead_somewhere(page):
    text = "\n\n".join(cell["source"] for cell in cells(page) if cell["cell_type"] == "markdown")
    assert rules.broken_links(text, page.parent) == []


@chapters
def test_opens_in_the_books_form(page):
    assert rules.form(cells(page)) == []


# Each module

@modules
def test_is_short(module):
    assert rules.long_code(module.read_text(encoding="utf-8")) == []


@modules
def test_catches_no_more_than_it_means(module):
    assert rules.broad_excepts(module.read_text(encoding="utf-8")) == []


@modules
def test_raises_instead_of_asserting(module):
    assert rules.bare_asserts(module.read_text(encoding="utf-8")) == []


@modules
def test_public_names_are_documented(module):
    assert rules.undocumented(module.read_text(encoding="utf-8")) == []


@modules
def test_needs_only_what_is_required(module):
    required = rules.settings()["requirements"].split()
    assert rules.foreign_imports(module.read_text(encoding="utf-8"), required) == []


@modules
def test_keeps_the_walls(module):
    assert rules.broken_walls(module.stem, module.read_text(encoding="utf-8")) == []


def lint(*paths: Path) -> list[str]:
    "What ruff, set up in pyproject.toml, has to say of files or folders."
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    done = subprocess.run([*command, "--config", ROOT / "pyproject.toml", *paths], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if re.search(r":\d+:\d+: ", line)]


def test_no_name_is_unused_or_unknown(tmp_path):
    assert lint(ROOT / "pzsl_nb", ROOT / "nbs", ROOT / "tests", ROOT / ".ci") == []
    (tmp_path / "planted.py").write_text("import os\ndef f():\n    x = 1\n    return y\n")
    assert [re.search(r"F\d+", line)[0] for line in lint(tmp_path)] == ["F401", "F841", "F821"]


# Export, cleaning, README, packaging

@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    "The book alone: settings and pages, and a package with nothing in it but its version."
    folder = tmp_path_factory.mktemp("book")
    for name in ("settings.ini", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for page in PAGES:
        (folder / page.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, folder / page.relative_to(ROOT))
    (folder / "pzsl_nb").mkdir()
    shutil.copy(ROOT / "pzsl_nb" / "__init__.py", folder / "pzsl_nb")
    return folder


def nbdev(call: str, folder: Path) -> None:
    "Runs one of nbdev's commands in a folder, as its console script would."
    name = call.rsplit(".", 1)
    script = f"import sys; sys.argv = ['nbdev']; from {name[0]} import {name[1]}; {name[1]}()"
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python_files(package: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in package.glob("*.py")}


def test_export_leaves_no_difference(copy):
    nbdev("nbdev.doclinks.nbdev_export", copy)
    exported, committed = python_files(copy / "pzsl_nb"), python_files(ROOT / "pzsl_nb")
    assert set(exported) == set(committed)
    assert [name for name in exported if exported[name] != committed[name]] == [], "run nbdev_export and commit"


def test_notebooks_are_clean(copy):
    nbdev("nbdev.clean.nbdev_clean", copy)
    unclean = [page.name for page in PAGES if page.read_bytes() != (copy / page.relative_to(ROOT)).read_bytes()]
    assert unclean == [], "run nbdev_clean and commit"


def test_cleaning_and_export_would_show_in_the_copy(tmp_path, copy):
    "The two tests above are no empty comparison: an edited cell and a dirty one make a difference."
    folder = tmp_path / "book"
    shutil.copytree(copy, folder)
    page = folder / PAGES[0].relative_to(ROOT)
    notebook = json.loads(page.read_text(encoding="utf-8"))
    cell = next(cell for cell in notebook["cells"] if rules.is_exported("".join(cell["source"])))
    cell["source"], cell["metadata"] = [*cell["source"], "\nPLANTED = 1"], {"scrolled": True}
    page.write_text(json.dumps(notebook), encoding="utf-8")
    nbdev("nbdev.doclinks.nbdev_export", folder)
    nbdev("nbdev.clean.nbdev_clean", folder)
    assert any("PLANTED = 1" in text for text in python_files(folder / "pzsl_nb").values())
    assert "scrolled" not in page.read_text(encoding="utf-8")


def readme_module():
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_is_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme_module().readme(), "run python .ci/readme.py"


def test_readme_has_the_two_commands_that_ci_runs():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.fullmatch(r"pip install .* && pzsl run", line)] == ["pip install '.[dev]' && pzsl run"]
    assert len([line for line in lines if re.fullmatch(r"pip install .* && .*nbdev_test.* && pytest", line)]) == 1


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_front_pages_lead_somewhere(page):
    assert rules.broken_links((ROOT / page).read_text(encoding="utf-8"), ROOT) == []


def test_readme_shows_code_and_output_and_refuses_lost_pictures(tmp_path):
    def page(**output):
        cell = {"cell_type": "code", "source": ["#| echo: false\n", "secret()"], "outputs": [output]}
        text = {"cell_type": "markdown", "source": "![a](images/a.png) [b](../LICENSE) [c](https://c.org) [d](#d)"}
        (tmp_path / "index.ipynb").write_text(json.dumps({"cells": [text, cell]}), encoding="utf-8")
        return readme_module().readme(tmp_path / "index.ipynb")
    made = page(output_type="stream", text=["two\n", "lines\n"])
    assert "![a](nbs/images/a.png) [b](LICENSE) [c](https://c.org) [d](#d)" in made
    assert "```\ntwo\nlines\n```" in made and "secret" not in made
    with pytest.raises(ValueError, match="puts out a picture"):
        page(output_type="display_data", data={"image/png": "AAAA"})


def test_settings_and_pyproject_agree():
    assert rules.disagreements(rules.settings(), (ROOT / "pyproject.toml").read_text(encoding="utf-8")) == []


def test_version_is_the_packages():
    assert f'__version__ = "{rules.settings()["version"]}"' in (ROOT / "pzsl_nb" / "__init__.py").read_text()
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{rules.settings()['version']}]" in changelog


@pytest.mark.parametrize("field, wrong", [
    ("min_python", "3.8"), ("license", "mit"), ("description", "Something else"),
    ("requirements", "torch>=1.0"), ("dev_requirements", "nbdev"), ("docs_requirements", "sphinx"),
    ("console_scripts", "pzsl=pzsl_nb.main:main"),
])
def test_a_disagreement_is_seen(field, wrong):
    toml = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(rules.disagreements({**rules.settings(), field: wrong}, toml)) == 1


def committed_files() -> list[Path]:
    "What git tracks; outside a git checkout, everything but caches and build products."
    listed = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    skipped = {".git", "__pycache__", "build", "dist", "runs", ".venv", ".pytest_cache", "pzsl_nb.egg-info"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


def without_pictures(path: Path) -> str:
    "Text of a file; base64 pictures of notebooks, where any letters may occur, left out."
    text = path.read_bytes().decode("utf-8", errors="ignore")
    return re.sub(r'"image/png": ".*"', "", text)


def test_no_machine_paths():
    found = {path.name: rules.machine_paths(without_pictures(path)) for path in committed_files()
             if path.suffix in {".py", ".md", ".ipynb", ".ini", ".toml", ".yaml", ".json", ".txt", ""}}
    assert len(found) > 10
    assert {name: where for name, where in found.items() if where} == {}


# Planted breaches: a rule that cannot fail is no rule

LONG = "def f():\n" + "    x = 1\n" * 45
PAGE = {"cell_type": "code", "metadata": {}, "outputs": []}


@pytest.mark.parametrize("rule, arguments", [
    (rules.upward_imports, ("31_loss", "from pzsl_nb.model import CLIPPZSL", {"model": 33})),
    (rules.upward_imports, ("31_loss", "def f():\n    import pzsl_nb.model as m", {"model": 33})),
    (rules.upward_imports, ("31_loss", "from pzsl_nb import core, model", {"core": 0, "model": 33})),
    (rules.upward_imports, ("31_loss", "from .model import CLIPPZSL", {"model": 33})),
    (rules.upward_imports, ("31_loss", "!ls\nfrom pzsl_nb.loss import cc", {"loss": 31})),
    (rules.upward_imports, ("index", "from pzsl_nb.gone import x", {"loss": 31})),
    (rules.star_imports, ("from torch import *",)),
    (rules.missing_outputs, ([{**PAGE, "source": "1 + 1"}],)),
    (rules.missing_outputs, ([{**PAGE, "source": "1/0", "outputs": [{"output_type": "error", "ename": "ZeroDivisionError"}]}],)),
    (rules.form, ([{"cell_type": "markdown", "source": "# A title\n\nwithout a summary"}],)),
    (rules.form, ([{"cell_type": "markdown", "source": "> only a summary"}],)),
    (rules.long_code, ("x = 1  #" + "-" * 120,)),
    (rules.long_code, (LONG,)),
    (rules.broad_excepts, ("try: f()\nexcept: pass",)),
    (rules.broad_excepts, ("try: f()\nexcept (ValueError, Exception) as e: print(e)",)),
    (rules.broad_excepts, ("try: f()\nexcept BaseException as e: raise ValueError from e",)),
    (rules.bare_asserts, ("def f(x):\n    assert x > 0",)),
    (rules.undocumented, ("def f(x):\n    return x",)),
    (rules.undocumented, ("class A:\n    x = 1",)),
    (rules.foreign_imports, ("import torch\ndef f():\n    from fastcore.test import test_eq", ["torch>=2.6"])),
    (rules.foreign_imports, ("import sklearn", ["torch>=2.6"])),
    (rules.broken_walls, ("metrics", "from .model import CLIPPZSL")),
    (rules.broken_walls, ("core", "from pzsl_nb.cli import main")),
    (rules.machine_paths, ("saved to " + "/wo" + "rk/main/runs",)),
    (rules.machine_paths, ("/ho" + "me/somebody/pzsl_nb",)),
    (rules.broken_links, ("see [there](nowhere.md)", ROOT)),
    (rules.broken_links, ('<img src="nowhere.png">', ROOT)),
])
def test_a_breach_is_seen(rule, arguments):
    assert len(rule(*arguments)) == 1


@pytest.mark.parametrize("rule, arguments", [
    (rules.upward_imports, ("31_loss", "from pzsl_nb.core import PZSLError\nimport torch", {"core": 0})),
    (rules.upward_imports, ("index", "%matplotlib inline\nfrom pzsl_nb.loss import cc", {"loss": 31})),
    (rules.missing_outputs, ([{**PAGE, "source": "#| export\nx = 1"}, {**PAGE, "source": "#| default_exp loss"}],)),
    (rules.form, ([{"cell_type": "markdown", "source": "# A title\n\n> What it is."}],)),
    (rules.long_code, ("__all__ = [" + "'name', " * 40 + "]",)),
    (rules.broad_excepts, ("try: f()\nexcept BaseException:\n    g()\n    raise",)),
    (rules.foreign_imports, ("import os, open_clip\nfrom PIL import Image\nfrom .core import x", ["open_clip_torch>=3", "pillow"])),
    (rules.broken_links, ("[a](README.md#top) [b](https://b.org) `[c](code)`", ROOT)),
])
def test_what_is_allowed_passes(rule, arguments):
    assert rule(*arguments) == []
