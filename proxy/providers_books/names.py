"""Names of models in a provider's books → the name by which we call it there."""

import re
from collections.abc import Iterable, Mapping

from config.catalogue import Model

_DATED = re.compile(r"-20[0-9]{2}-?[0-9]{2}-?[0-9]{2}$")
"""The date of a snapshot: `gpt-image-2-2026-04-21`."""

_ENDS = re.compile(r"[^0-9a-z./-]")


class Names:
    """The models of one provider: those of the catalogue, and others that the ledger has orders of."""

    def __init__(self, provider: str, models: Mapping[str, Model], used: Iterable[str]) -> None:
        self._known = {name.lower(): name for name in used}
        for model_id, model in models.items():
            if model.provider == provider:
                for name in (model.upstream, model_id, model_id.partition("/")[2], model.name):
                    self._known.setdefault(name.lower(), model.upstream)

    def find(self, text: str) -> str | None:
        """Find a model in a line's text: the whole of it, or its beginning up to a space or a comma."""
        wanted = " ".join(text.lower().split())
        for name in (wanted, _DATED.sub("", wanted)):
            if name in self._known:
                return self._known[name]
        begun = [name for name in self._known if wanted.startswith(name) and _ENDS.match(wanted, len(name))]
        if begun:
            return self._known[max(begun, key=len)]
        word = _ENDS.split(wanted, maxsplit=1)[0]
        return self._known.get(_DATED.sub("", word))
