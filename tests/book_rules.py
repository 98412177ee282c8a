"""The book's own rules. Each takes text and gives a list of complaints, empty when all is well.

Kept apart from the tests that apply them, so that each rule can also be shown text that breaks it.
"""
import ast
import configparser
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:   # Python 3.10, where pytest itself requires tomli
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LONGEST_LINE, LONGEST_FUNCTION = 120, 45
IMPORT_NAMES = {"open_clip": "open_clip_torch", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
WALLS = {  # module: modules of the book that it must not know
    "loss": {"model", "training", "sources", "encoders", "extract"},
    "disambiguation": {"model", "training", "sources", "encoders", "extract"},
    "mining": {"model", "training", "sources", "encoders", "extract"},
    "metrics": {"model", "training", "sources", "encoders", "extract"},
    "training": {"model", "loss", "disambiguation", "mining"},
    "plots": {"task", "model", "training", "sources", "encoders", "extract", "estimator", "experiment"},
}
MACHINE_PATH = re.compile(r"/(?:work|root|Users)/\w|/home/\w|/tmp/tmp\w|[A-Z]:\\+Users\\", re.ASCII)


# Notebooks

def notebooks(root: Path = ROOT) -> list[Path]:
    "Every committed page, tutorials too; not the copies that Jupyter and other tools hide."
    pages = sorted((root / "nbs").rglob("*.ipynb"))
    return [page for page in pages if not any(part.startswith((".", "_")) for part in page.relative_to(root).parts)]


def cells(notebook: Path) -> list[dict]:
    "The cells, their source as one string."
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def directives(source: str) -> set[str]:
    "First words of the `#|` lines."
    return {line[2:].split()[0] for line in source.splitlines() if line.startswith("#|") and line[2:].split()}


def is_exported(source: str) -> bool:
    return bool(directives(source) & {"export", "exports", "exporti"})


def python_only(source: str) -> str:
    "Code without notebook magics, which are no Python."
    if source.lstrip().startswith("%%"):
        return ""
    return "\n".join("pass" if line.lstrip().startswith(("!", "%")) else line for line in source.splitlines())


def book_imports(source: str) -> Iterator[str]:
    "Modules of the book that the code imports, at its top or inside a function."
    for node in ast.walk(ast.parse(python_only(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pzsl_nb."))
        elif isinstance(node, ast.ImportFrom):
            inside = (node.module or "") if node.level else (node.module or "").removeprefix("pzsl_nb").lstrip(".")
            if node.level or (node.module or "").split(".")[0] == "pzsl_nb":
                yield from [inside.split(".")[0]] if inside else [alias.name for alias in node.names]


def upward_imports(name: str, source: str, numbers: Mapping[str, int]) -> list[str]:
    "A notebook imports only smaller numbers; a page without a number may import anything that there is."
    own = number(name)
    return [f"{name} imports {module}" + (f" ({numbers[module]:02d})" if module in numbers else ", which no notebook exports")
            for module in book_imports(source)
            if module not in numbers or own is not None and numbers[module] >= own]


def number(name: str) -> int | None:
    "12 of '12_features_files'; None of 'index'."
    return int(match[1]) if (match := re.match(r"(\d\d)_", name)) else None


def star_imports(source: str) -> list[str]:
    return [f"line {node.lineno}: from {node.module} import *" for node in ast.walk(ast.parse(python_only(source)))
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)]


def missing_outputs(page: Sequence[Mapping]) -> list[str]:
    "A page that runs code for the reader shows what came of it, and no error."
    shown = [cell for cell in page if cell["cell_type"] == "code" and cell["source"].strip()
             and not directives(cell["source"]) & {"default_exp", "export", "exports", "hide"}]
    errors = [output["ename"] for cell in page for output in cell.get("outputs", []) if output["output_type"] == "error"]
    complaints = [f"an output is the error {name}" for name in errors]
    if shown and not any(cell["outputs"] for cell in shown):
        complaints.append(f"{len(shown)} cells run for the reader and none has an output")
    return complaints


def form(page: Sequence[Mapping]) -> list[str]:
    "A chapter opens with a title and one line on what it is; nbdev makes that line the module's docstring."
    first = next((cell["source"] for cell in page if cell["cell_type"] == "markdown"), "")
    opens_well = re.match(r"# \S.*\n\n> \S.*(\n\n|\Z)", first)
    return [] if opens_well else [f"opens with {first[:60]!r}, not with a title and a one-line summary"]


# Exported code

def functions(source: str) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def long_code(source: str) -> list[str]:
    "Lines and functions that are too long; nbdev's own `__all__` is not ours to break."
    generated = [range(node.lineno, node.end_lineno + 1) for node in ast.parse(source).body
                 if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
    lines = [f"line {i}: {len(line)} characters" for i, line in enumerate(source.splitlines(), 1)
             if len(line) > LONGEST_LINE and not any(i in span for span in generated)]
    spans = [(node, node.end_lineno - node.lineno + 1) for node in functions(source)]
    return lines + [f"line {node.lineno}: {node.name} has {span} lines" for node, span in spans if span > LONGEST_FUNCTION]


def broad_excepts(source: str) -> list[str]:
    "Handlers that catch everything, unless they end by raising on."
    def names(kind):
        return {getattr(part, "id", getattr(part, "attr", "")) for part in getattr(kind, "elts", [kind])}
    return [f"line {node.lineno}: catches everything" for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ExceptHandler)
            and (node.type is None or names(node.type) & {"Exception", "BaseException"})
            and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)]


def bare_asserts(source: str) -> list[str]:
    "`python -O` drops an assert; exported code raises."
    return [f"line {node.lineno}: assert" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def undocumented(source: str) -> list[str]:
    "Public functions and classes at the top of a module say what they give."
    return [f"line {node.lineno}: {node.name} has no docstring" for node in ast.parse(source).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            and not ast.get_docstring(node)]


def foreign_imports(source: str, requirements: Sequence[str]) -> list[str]:
    "Imports of what `pip install pzsl_nb` does not bring (fastcore, say, which only notebooks use)."
    allowed = {re.split(r"[<>=!~\[ ]", item)[0].lower() for item in requirements} | {"torchvision"}   # open_clip's own
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return [f"imports {name}, which is not required" for name in sorted(found - sys.stdlib_module_names - {"pzsl_nb"})
            if IMPORT_NAMES.get(name, name).lower() not in allowed]


def broken_walls(module: str, source: str) -> list[str]:
    "Nothing imports the command line; the method's parts do not know what they are built into."
    forbidden = WALLS.get(module, set()) | {"cli"}
    source = re.sub(r"from \.loss import Batch(, at_candidates)?\n", "", source)   # a bundle and a gather are no loss
    return [f"{module} imports {other}" for other in sorted(set(book_imports(source)) & forbidden)]


# Everything that is committed

def machine_paths(text: str) -> list[str]:
    "Places that exist on one machine only."
    return [f"line {i}: {match[0]}" for i, line in enumerate(text.splitlines(), 1)
            if (match := MACHINE_PATH.search(line))]


def broken_links(text: str, folder: Path) -> list[str]:
    "Links and pictures of a markdown page that lead to no file."
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    paths = [(a or b).split("#")[0] for a, b in targets if not re.match(r"[a-z]+:|#", a or b)]
    return [f"{path} is not there" for path in paths if not (folder / path).exists()]


# Packaging

def settings(root: Path = ROOT) -> Mapping[str, str]:
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirement_list(text: str) -> set[str]:
    return set(text.split())


def disagreements(ini: Mapping[str, str], toml: str) -> list[str]:
    "Values that settings.ini and pyproject.toml give differently."
    project = tomllib.loads(toml)["project"]
    scripts = {f"{name}={target}" for name, target in project["scripts"].items()}
    licences = {"apache2": "Apache-2.0"}
    pairs = {
        "name": (ini["lib_name"], project["name"]),
        "version": (["version"], project.get("dynamic")),   # one place: settings.ini, by way of the package
        "description": (ini["description"], project["description"]),
        "python": (f">={ini['min_python']}", project["requires-python"]),
        "licence": (licences.get(ini["license"]), project["license"]),
        "author": (ini["author"], project["authors"][0]["name"]),
        "e-mail": (ini["author_email"], project["authors"][0]["email"]),
        "requirements": (requirement_list(ini["requirements"]), set(project["dependencies"])),
        "dev requirements": (requirement_list(ini["dev_requirements"]), set(project["optional-dependencies"]["dev"])),
        "docs requirements": (requirement_list(ini["docs_requirements"]), set(project["optional-dependencies"]["docs"])),
        "console script": (requirement_list(ini["console_scripts"]), scripts),
    }
    return [f"{what}: settings.ini has {ours}, pyproject.toml {theirs}" for what, (ours, theirs) in pairs.items()
            if ours != theirs]
