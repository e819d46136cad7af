"""A bound that organisations share fairly: who may have more of it, and how much each has. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """So much in all. One organisation alone may have `most`; `spare` is on top, for those that have little.

    Both are in the unit of whatever is bounded: pictures, connections, bytes.
    """

    most: int
    spare: int = 0

    def share(self, settled: Iterable[int], wanting: int) -> int:
        """What each of `wanting` organisations, at least one, may have beside others that want no more than they have.

        Max-min fairness: who has less than an equal part leaves the rest of it to the others.
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
        """May an organisation that has `has` take `more`, while all together have `taken`?

        `wanting` counts the others that wait or were refused; as long as there is none, the share does not bind.
        `settled` is what each of the rest has. Of what is spare nobody takes more than is left of it.
        """
        fits = taken + more <= self.most
        if fits and not wanting:
            return True
        # Whoever has nothing may begin: an equal part among very many may be less than one order.
        if has and has + more > self.share(settled, wanting + 1):
            return False
        return fits or has + more <= self.most + self.spare - taken - more


class Shares:
    """How much of a bound each organisation has."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.taken = 0
        self._has: dict[str, int] = {}

    def has(self, org_id: str) -> int:
        """What an organisation has taken and not given back."""
        return self._has.get(org_id, 0)

    @property
    def holders(self) -> int:
        """How many organisations have any of it."""
        return len(self._has)

    def allow(self, org_id: str, more: int, wanting: Collection[str]) -> bool:
        """May it take so much more, while those of `wanting` wait, or were refused?"""
        rivals = sum(one != org_id for one in wanting)
        if not rivals and self.fits(more):
            return True
        settled = [has for one, has in self._has.items() if one != org_id and one not in wanting]
        return self.bound.allows(self.has(org_id), more, self.taken, settled, rivals)

    def fits(self, more: int) -> bool:
        """Is there room for so much more, whoever asks?"""
        return self.taken + more <= self.bound.most

    def take(self, org_id: str, amount: int) -> None:
        """What was allowed."""
        self.taken += amount
        self._has[org_id] = self.has(org_id) + amount

    def give_back(self, org_id: str, amount: int) -> None:
        """Of what it has."""
        self.taken -= amount
        if left := self.has(org_id) - amount:
            self._has[org_id] = left
        else:
            self._has.pop(org_id, None)
