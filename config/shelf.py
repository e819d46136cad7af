"""Which models of a catalogue live, which have an end, and what follows them. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum

from config.catalogue import Model


class Status(StrEnum):
    """A model's stage. It only informs: the upstream decides whether a model is gone."""

    LIVE = "live"
    DEPRECATED = "deprecated"
    RETIRED = "retired"


class Fault(StrEnum):
    """What is wrong with a model of a shelf."""

    ENDED = "ended"
    ENDING = "ending"
    SUCCESSOR = "successor"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a model, and a sentence of what to do. `successor` is the one that is left out, of `SUCCESSOR`."""

    model: str
    fault: Fault
    why: str
    successor: str | None = None


def status_of(model: Model, today: date) -> Status:
    """Tell a model's stage on a day in UTC, as its `Sunset` header says: it has ended when its last day begins."""
    if model.shutdown_date is None:
        return Status.LIVE
    return Status.RETIRED if model.shutdown_date <= today else Status.DEPRECATED


@dataclass(frozen=True, slots=True)
class Shelf:
    """All rows of a catalogue, and the names of those that can be ordered."""

    models: Mapping[str, Model]
    offered: Collection[str]

    def successor(self, name: str, model: Model, today: date) -> str | None:
        """Follow a model's successors to the first that can be ordered and has not ended; None if there is none.

        The model itself may stand in no row any more: an order keeps the one that it was parsed with.
        """
        passed = {name}
        following = model.successor
        while following is not None and following not in passed:
            if self._why_left_out(following, today) is None:
                return following
            passed.add(following)
            row = self.models.get(following)
            following = row.successor if row is not None else None
        return None

    def findings(self, today: date, within: timedelta = timedelta(0)) -> list[Finding]:
        """List what is wrong with what can be ordered: ends that have come, or come `within` a time, and successors."""
        found = []
        for name in sorted(self.offered):
            model = self.models[name]
            # What another model serves is sold as long as that one lives.
            served = self.models[model.served_by] if model.served_by else model
            if (ends := served.shutdown_date) is not None:
                ending = name if served is model else f"{model.served_by}, which serves it,"
                if ends <= today:
                    found.append(Finding(name, Fault.ENDED, f"{ending} ended on {ends}; {_remedy(served)}"))
                elif ends <= today + within:
                    found.append(Finding(name, Fault.ENDING, f"{ending} ends on {ends}; {_remedy(served)}"))
            if model.successor is not None and (why := self._why_left_out(model.successor, today)) is not None:
                found.append(Finding(name, Fault.SUCCESSOR, f"{model.successor} {why}; name another", model.successor))
        return found

    def _why_left_out(self, name: str, today: date) -> str | None:
        """Say why a model cannot be named as a successor; None if it can."""
        if name not in self.models:
            return "is no model of the catalogue"
        if name not in self.offered:
            return "is not offered: it has no price, or its provider no key"
        if status_of(self.models[name], today) is Status.RETIRED:
            return f"ended on {self.models[name].shutdown_date}"
        return None


def _remedy(ending: Model) -> str:
    return f'map it on to another by served_by = "{ending.successor or "PROVIDER/MODEL"}", or take its table out'
