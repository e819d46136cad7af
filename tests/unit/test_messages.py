"""Messages for customers: every sentence in both languages, with the same values in it."""

import ast
import string
from pathlib import Path

import pytest

from proxy import messages
from proxy.messages import Text, translated

TABLE = {name: value for name, value in vars(messages).items() if isinstance(value, Text)}
PROXY = Path(messages.__file__).parent
ENGLISH_ALONE = ("admin", "finance")
"""Those two APIs speak as the commands do."""


def values(template: str) -> set[str]:
    """Names in the text as `{name}`, with their format."""
    return {f"{name}:{form}" for _, name, form, _ in string.Formatter().parse(template) if name is not None}


@pytest.mark.parametrize("name", TABLE)
def test_both_languages_have_the_same_values(name: str) -> None:
    """None is missing, and if one is a whole sentence, so is the other."""
    text = TABLE[name]
    assert values(text) == values(text.es)
    assert text.endswith((".", "?")) == text.es.endswith((".", "?"))
    assert text != text.es or name == "NOTHING"


def test_a_value_that_is_a_text_is_told_in_its_own_language() -> None:
    """And braces in what a customer sent are text."""
    said = messages.RATE.of(whose=messages.THE_KEYS, limit=4, what=messages.IMAGES)
    assert said == "This API key's limit is 4 images per minute."
    assert said.es == "El límite de esta clave de API es de 4 imágenes por minuto."
    both = messages.NO_MODEL.of(model="{name}").then(messages.SEE_MODELS)
    assert both == "There is no model `{name}`. See GET /v1/models."
    assert translated(both, "es") == ("No existe el modelo `{name}`. Consulte GET /v1/models.", "es")


def test_no_customer_is_told_a_sentence_that_is_not_in_the_table() -> None:
    """Neither a literal nor an f-string is given to an ApiError, but by what speaks English alone."""
    found = []
    for path in PROXY.rglob("*.py"):
        if path.parent.name in ENGLISH_ALONE:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ApiError":
                message = node.args[1]
                if isinstance(message, ast.JoinedStr | ast.Constant):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == [], "give it its Spanish in proxy/messages.py"


def test_every_sentence_of_the_table_is_told_somewhere() -> None:
    """None stays behind when its code has gone."""
    code = "\n".join(path.read_text() for path in PROXY.rglob("*.py") if path.name != "messages.py")
    assert [name for name in TABLE if name not in code] == []
