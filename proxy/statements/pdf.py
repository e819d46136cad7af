"""A statement as a PDF, by Typst (the extra `pdf`): the sheet is its data, and it reaches no file and no network."""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import orjson

from metering.clock import month_start_us, next_month
from proxy.statements.sheet import Sheet

PAPER = "us-letter"
"""The size of Mexican office paper. The page's margins let it be printed on A4 as well."""

_TEMPLATE = Path(__file__).with_name("sheet.typ")


def is_installed() -> bool:
    """Check whether the extra is there, without loading it."""
    return find_spec("typst") is not None


def pdf_of(sheet: Sheet, month: str, paper: str = PAPER) -> bytes:
    """Draw a sheet of a month as a PDF, tagged for screen readers: the same sheet gives the same bytes.

    It takes a tenth of a second, with 500 keys a second: call it in a thread. Raises ImportError without the extra.
    """
    import typst  # noqa: PLC0415  # the extra `pdf`: 80 MB that only a PDF needs

    with tempfile.TemporaryDirectory(prefix="ghub-typst-") as empty:
        compiler = typst.Compiler(
            _TEMPLATE.read_bytes(),
            root=empty,
            font_paths=typst.Fonts(include_system_fonts=False),
            package_path=empty,
            package_cache_path=empty,
            sys_inputs={"sheet": orjson.dumps(sheet).decode(), "paper": paper},
        )
        # Its date is when the month ends, whenever it is drawn.
        drawn = compiler.compile(format="pdf", timestamp=month_start_us(next_month(month)) // 1_000_000)
    assert isinstance(drawn, bytes), "a PDF is one file"
    return drawn
