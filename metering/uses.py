"""When keys were last used: the ledger knows of orders that are booked, Redis of later ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from metering.ports import ApiKey, Ledger

if TYPE_CHECKING:
    from metering.wallet.wallet import Wallet


async def last_used(ledger: Ledger, wallet: "Wallet | None", org_id: str, keys: Sequence[ApiKey]) -> dict[str, int]:
    """Key id → Unix µs of its last order, of keys that have one; without a wallet as far as the ledger knows.

    Raises WalletAway.
    """
    late = {} if wallet is None else await wallet.last_used(org_id, [key.key_id for key in keys])
    used = await ledger.last_used(org_id)
    return used | {key_id: max(used.get(key_id, 0), at_us) for key_id, at_us in late.items()}
