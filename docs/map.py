"""Prints `docs/map.md`, every room and file, from the code: `.venv/bin/python -m docs.map`. A test compares the two."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
PACKAGES = ("proxy", "metering", "config", "simulator")

HEAD = """\
<!-- Printed from the code by `.venv/bin/python -m docs.map`; changes belong there. -->

# Map

Every file of the code, by its own first sentence. [architecture.md](architecture.md) says how they work together.
"""


def rooms() -> Iterator[Path]:
    """List folders with code, each before those inside it."""
    for package in PACKAGES:
        yield from sorted({path.parent for path in (ROOT / package).rglob("*.py")})


def first_sentence(path: Path) -> str:
    """Read the first sentence of a file's docstring."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert said, f"{path} says nothing about itself"
    return re.sub(r"\brule (\d+)", r"[rule \1](rules.md#\1)", said.partition("\n")[0].replace("|", "\\|"))


def page() -> str:
    """Print the whole page."""
    lines = [HEAD]
    for room in rooms():
        lines += [f"## `{room.relative_to(ROOT)}/`", "", first_sentence(room / "__init__.py"), ""]
        files = sorted(path for path in room.glob("*.py") if not path.name.startswith("__"))
        lines += ["| file | |", "|---|---|", *(f"| `{path.name}` | {first_sentence(path)} |" for path in files), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")


if __name__ == "__main__":
    main()
