"""An organisation's balance as people and programs read it."""

from metering.money import format_mxn
from metering.wallet.values import WalletSnapshot


def balance_fields(cut: WalletSnapshot) -> dict[str, str]:
    """Format what can be spent, what open orders hold, and their sum."""
    return {
        "available_mxn": format_mxn(cut.available_micro_mxn),
        "held_mxn": format_mxn(cut.held_micro_mxn),
        "balance_mxn": format_mxn(cut.available_micro_mxn + cut.held_micro_mxn),
    }
