"""An organisation's balance, and what was paid into it, as people and programs read them."""

from metering.money import format_mxn, format_rate
from metering.tax import Tax
from metering.wallet.values import WalletSnapshot
from proxy.orders.result import public_id


def balance_fields(cut: WalletSnapshot) -> dict[str, str]:
    """Format what can be spent, what open orders hold, and their sum."""
    return {
        "available_mxn": format_mxn(cut.available_micro_mxn),
        "held_mxn": format_mxn(cut.held_micro_mxn),
        "balance_mxn": format_mxn(cut.available_micro_mxn + cut.held_micro_mxn),
    }


def organisation_fields(cut: WalletSnapshot) -> dict[str, str]:
    """Format the same for operators, with what providers may bill us for orders that nobody was charged for."""
    return balance_fields(cut) | {"unpaid_mxn": format_mxn(cut.unpaid_micro_mxn)}


def tax_fields(tax: Tax | None) -> dict[str, str | None]:
    """Format what was paid for a credit: base, rate, IVA and total. All are null if nothing was paid."""
    if tax is None:
        return dict.fromkeys(("base_mxn", "iva_rate", "iva_mxn", "total_mxn"))
    return {
        "base_mxn": format_mxn(tax.base_micro_mxn),
        "iva_rate": format_rate(tax.rate),
        "iva_mxn": format_mxn(tax.iva_micro_mxn),
        "total_mxn": format_mxn(tax.total_micro_mxn),
    }


def corrected(corrects: str | None) -> str | None:
    """Format what an adjustment corrects: `order:` and its public id, `credit:` and its id, or `fx:` and its month."""
    kind, _, name = (corrects or "").partition(":")
    return f"order:{public_id(name)}" if kind == "order" else corrects
