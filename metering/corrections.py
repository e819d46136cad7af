"""A month that was charged at a wrong rate: what each organisation is owed at the right one, and gets, linked to it.

No proof ever changes. The difference is an adjustment of its own for each organisation; what was given already counts,
so repeating this gives only what has come since.
"""

from collections.abc import AsyncIterator
from decimal import Decimal

from metering.accounts import Accounts
from metering.pages import pages
from metering.ports import AtRate, Ledger, Org, WrongField


async def corrections(
    ledger: Ledger, accounts: Accounts | None, month: str, mxn_per_usd: Decimal, reason: str
) -> AsyncIterator[tuple[Org, AtRate]]:
    """Yield each organisation that a month's rate concerns, once its adjustment is given; without `accounts` none is.

    An organisation's adjustment is one transaction: whenever this ends, the next time finds what is left to be given.
    Raises WrongField if the month never had a rate.
    """
    if month not in {rate.month for rate in await ledger.rates()}:
        raise WrongField("month", f"no rate of {month} was ever in force: nothing was charged at it")
    async for page in pages(ledger.orgs):
        for org in page:
            found = await ledger.at_rate(org.org_id, month, mxn_per_usd)
            while accounts is not None and found.adjustment_micro_mxn:
                if await accounts.correct_rate(found, month, mxn_per_usd, reason):
                    break
                found = await ledger.at_rate(org.org_id, month, mxn_per_usd)  # somebody else was first
            if found.charged_micro_mxn or found.times or found.adjustment_micro_mxn:
                yield org, found
