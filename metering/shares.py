"""A limit that organisations share fairly: who may take more, and how much each has. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit for all together. One organisation alone may have `most`; `spare` is extra, for those that have little.

    Both are in the unit of what is limited: pictures, connections, bytes.
    """

    most: int
    spare: int = 0

    def share(self, settled: Iterable[int], wanting: int) -> int:
        """Share of each of `wanting` organisations (at least one), if the `settled` others want no more than they have.

        Max-min fairness: an organisation that uses less than an equal part leaves the rest of it to the others.
        """
        parts = sorted(settled)
        rest, sharers = self.most, wanting + len(parts)
        for has in parts:
            if has * sharers >= rest:
                break
            rest -= has
            sharers -= 1
        return rest // sharers

    def allows(self, has: int, more: int, taken: int, settled: Iterable[int], wanting: int) -> bool:
        """True if an organisation that has `has` may take `more`, while all together have `taken`.

        `wanting` counts the others that wait or were refused. While it is 0, the share does not limit anyone. `settled`
        is what each of the rest has. Nobody takes more of `spare` than is left of it.
        """
        fits = taken + more <= self.most
        if fits and not wanting:
            return True
        # An organisation that has nothing may begin: an equal part among very many may be less than one order.
        if has and has + more > self.share(settled, wanting + 1):
            return False
        return fits or has + more <= self.most + self.spare - taken - more


class Shares:
    """How much of a limit each organisation has."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.taken = 0
        self._has: dict[str, int] = {}

    def has(self, org_id: str) -> int:
        """Return the amount that an organisation has taken and not given back."""
        return self._has.get(org_id, 0)

    @property
    def holders(self) -> int:
        """Number of organisations that have any of it."""
        return len(self._has)

    def allow(self, org_id: str, more: int, wanting: Collection[str]) -> bool:
        """True if it may take this much more, while the organisations in `wanting` wait or were refused."""
        rivals = sum(one != org_id for one in wanting)
        if not rivals and self.fits(more):
            return True
        settled = [has for one, has in self._has.items() if one != org_id and one not in wanting]
        return self.bound.allows(self.has(org_id), more, self.taken, settled, rivals)

    def fits(self, more: int) -> bool:
        """True if there is room for this much more, for anyone."""
        return self.taken + more <= self.bound.most

    def take(self, org_id: str, amount: int) -> None:
        """Take an amount that was allowed."""
        self.taken += amount
        self._has[org_id] = self.has(org_id) + amount

    def give_back(self, org_id: str, amount: int) -> None:
        """Give back a part of what it has."""
        self.taken -= amount
        if left := self.has(org_id) - amount:
            self._has[org_id] = left
        else:
            self._has.pop(org_id, None)
