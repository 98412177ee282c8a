"""Link into an empty environment what an installed pzsl_nb may rely on, and nothing else.

    python .ci/runtime_only.py SITE_PACKAGES

Run by the Python of the development environment. A second download of torch would prove no more: the closure of the
run-time requirements is taken from the metadata of what is installed, and each of its distributions is linked. What
only the `dev` extra brings (nbdev, fastcore, pytest ...) is not there.
"""
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(name: str, extras: frozenset[str]) -> list[Requirement]:
    "What a distribution with these extras requires on this machine."
    wanted = [Requirement(text) for text in distribution(name).requires or []]
    return [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras | {""})]


def closure(name: str) -> set[str]:
    "Names of all distributions that `name` needs, without extras of its own and without itself."
    seen, todo = set(), [(name, frozenset())]
    while todo:
        if (item := todo.pop()) not in seen:
            seen.add(item)
            todo += [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements(*item)]
    return {other for other, _ in seen} - {name}


def top_level(dist: Distribution) -> set[Path]:
    "Files and folders of a distribution directly in site-packages."
    folder = Path(dist.locate_file(""))
    names = {file.parts[0] for file in dist.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return {folder / name for name in names if (folder / name).exists()}


def link(target: Path) -> int:
    "Links the closure into `target`; returns how many distributions it has."
    names = closure("pzsl-nb")
    for path in set().union(*(top_level(distribution(name)) for name in names)):
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path)
    return len(names)


if __name__ == "__main__":
    print(f"{link(Path(sys.argv[1]))} distributions linked")
