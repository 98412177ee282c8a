"""README.md from nbs/index.ipynb: `python .ci/readme.py` writes it, tests/test_book.py compares.

nbdev's own `nbdev_readme` needs Quarto. The index needs little: markdown as it stands, visible code in fences, printed
output below it. A picture is a file in nbs/images/ shown by markdown; a picture in a cell's output is refused, because
GitHub would not show it.
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n"


def from_root(markdown: str) -> str:
    "Links and pictures of a page in nbs/, as seen from the folder above; addresses and anchors stay."
    return re.sub(r"(\]\(|src=\")(?![a-z]+:|#|/)([^)\"]+)", r"\1nbs/\2", markdown).replace("nbs/../", "")


def output_text(output: dict) -> str:
    "A cell's output as markdown."
    data = output.get("data", {})
    if any(kind.startswith("image/") for kind in data):
        raise ValueError("index.ipynb: a cell puts out a picture; save it in nbs/images/ and show it by markdown")
    if "text/markdown" in data:
        return from_root("".join(data["text/markdown"]))
    return "```\n" + "".join(output.get("text") or data.get("text/plain", [])).strip("\n") + "\n```"


def cell_text(cell: dict) -> list[str]:
    "The blocks of one cell that a reader is to see."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [from_root(source)]
    directives = {line.replace(" ", "") for line in source.splitlines() if line.startswith("#|")}
    if cell["cell_type"] != "code" or {"#|hide", "#|include:false"} & directives:
        return []
    code = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip()
    shown = [] if "#|echo:false" in directives or not code else [f"```python\n{code}\n```"]
    return shown + [output_text(output) for output in cell["outputs"]]


def readme(notebook: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The whole text of README.md."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return HEADER + "\n" + "\n\n".join(block for cell in cells for block in cell_text(cell)).strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
