"""Every snippet of the guides runs unchanged: the official clients, and others that our customers use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.conftest import LOOPBACK
from tests.kits.node import PROGRAM_S, install
from tests.kits.programs import program
from tests.kits.system import System, bearer
from tests.long import LONG

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("guide.md", "guia.md")
"""The Spanish one runs with `make long`: its snippets are those of the other, but for words."""

FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
EXPORT = re.compile(r"(?m)^export (\w+)=")
VARIABLES = {"OPENAI_BASE_URL", "OPENAI_API_KEY"}


def snippets(guide: str) -> list[tuple[str, str]]:
    """Language and text of each, but for the one that sets the variables."""
    return [one for one in FENCE.findall((DOCS / guide).read_text()) if not EXPORT.search(one[1])]


def calls(text: str) -> list[str]:
    """List a snippet's imports, calls and model names: everything that is the same in both languages."""
    return re.findall(r"^(?:import|from) .*|\w+(?=\()|[\"'][\w./-]+/[\w./-]+[\"']", text, re.MULTILINE)


PLACES = [
    pytest.param(language, text, id=f"{guide}-{number}-{language}")
    for guide in (GUIDES if LONG else GUIDES[:1])
    for number, (language, text) in enumerate(snippets(guide))
]


@pytest.fixture(scope="module")
def customer(system: System) -> tuple[str, str]:
    """An organisation that orders what the guides order."""
    return system.customer("guides", "1000.00", requests_per_minute=10_000, images_per_minute=10_000)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the snippets for Node find their packages."""
    return install(tmp_path_factory.mktemp("node") / "client")


@pytest.mark.parametrize(("language", "text"), PLACES)
def test_a_snippet_does_what_it_says(
    system: System, customer: tuple[str, str], node: Path, tmp_path: Path, language: str, text: str
) -> None:
    """With the two variables that the guide sets, and nothing else of this machine's; it ends well."""
    file = {"js": node / "snippet.mjs", "python": tmp_path / "snippet.py", "sh": tmp_path / "snippet.sh"}[language]
    file.write_text(text)
    runs = {"js": program("node"), "python": sys.executable, "sh": "sh"}[language]
    environment = {
        "PATH": f"{Path(program('node')).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "OPENAI_BASE_URL": system.url,
        "OPENAI_API_KEY": customer[1],
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would ask for today's at a host that is not ours
    }
    done = subprocess.run(
        [runs, file], env=environment, cwd=file.parent, capture_output=True, text=True, timeout=PROGRAM_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    quiet = "assert " in text or "throw new Error" in text or "write_bytes" in text
    assert done.stdout.strip() or quiet, "it says nothing"


def test_both_guides_have_the_same_snippets_and_set_the_same_variables() -> None:
    """In the same order, for the same clients; only words differ."""
    english, spanish = ([(language, calls(text)) for language, text in snippets(guide)] for guide in GUIDES)
    assert english == spanish and len(english) > 10
    for guide in GUIDES:
        assert set(EXPORT.findall((DOCS / guide).read_text())) == VARIABLES


def test_the_tool_of_librechat_gets_its_image(system: System, customer: tuple[str, str]) -> None:
    """The parameters that LibreChat's image tools send for DALL·E 3 and gpt-image-1, with its own defaults."""
    orders = [
        {"model": "openai/dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1},
        {
            "model": "openai/gpt-image-1",
            "n": 1,
            "quality": "auto",
            "size": "auto",
            "background": "auto",
            "output_format": "webp",
            "output_compression": 100,
            "user": "64f0c0ffee",
        },
    ]
    for order in orders:
        sent = {"prompt": "Un axolotl", **order}
        reply = httpx2.post(
            f"{system.url}/images/generations", json=sent, headers=bearer(customer[1]), timeout=60, **LOOPBACK
        )
        assert reply.status_code == 200, reply.text
        assert reply.json()["data"][0]["url"]
