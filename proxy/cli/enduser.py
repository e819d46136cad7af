"""`ghub enduser`: whom a pseudonym stands for, what was charged for them, and the erasure of their clear name."""

from typing import Annotated, Any

import typer

from metering.money import format_mxn
from metering.ports import EndUserUse
from metering.pseudonyms import Pseudonyms
from proxy.cli.output import AsJson, OrgRef, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

UserRef = Annotated[str, typer.Argument(metavar="USER", help="As orders name them: `user` or `safety_identifier`.")]
ByPseudonym = Annotated[bool, typer.Option("--pseudonym", help="USER is the pseudonym of the events.")]


@app.command()
def show(ref: OrgRef, user: UserRef, by_pseudonym: ByPseudonym = False, as_json: AsJson = False) -> None:
    """An end user's pseudonym, their clear name if it is known, and what was charged for them."""

    async def work() -> dict[str, Any]:
        async with books() as opened:
            org_id = (await opened.ledger.org(ref)).org_id
            names = Pseudonyms(await opened.ledger.pseudonym_secret())
            pseudonym = names.named(org_id, user, by_pseudonym=by_pseudonym)
            return _fields(await opened.ledger.end_user(org_id, pseudonym))

    say(run(work(), "user"), as_json)


@app.command()
def erase(
    ref: OrgRef, user: UserRef, by_pseudonym: ByPseudonym = False, who: As = None, as_json: AsJson = False
) -> None:
    """Erase an end user's clear name. Events and sums stay, under the pseudonym.

    A later order of the same end user tells the name again.
    """

    async def work() -> dict[str, Any]:
        async with back(who) as opened:
            pseudonym, erased = await opened.accounts.erase_end_user(ref, user, by_pseudonym=by_pseudonym)
            return {"pseudonym": pseudonym, "erased": erased}

    say(run(work(), "user"), as_json)


def _fields(found: EndUserUse) -> dict[str, Any]:
    used = [
        {
            "as": one.label,
            "orders": one.orders,
            "images": one.images,
            "cost_mxn": format_mxn(one.amount_micro_mxn),
            "first_day": one.first_day,
            "last_day": one.last_day,
        }
        for one in found.used
    ]
    return {"pseudonym": found.pseudonym, "name": found.value, "told_at": found.told_at, "used": used}
