"""The admin API: what the commands do to organisations, for clients with an administrator's token."""

from collections.abc import Callable, Sequence
from functools import partial

from metering.accounts import Accounts
from metering.orders import Orders
from metering.ports import IdempotentWrite, Ledger
from metering.wallet.wallet import Wallet
from proxy.api.admin import writes
from proxy.api.admin.desk import Desk, Writing
from proxy.api.admin.reads import Reads
from proxy.api.admin.schemas import (
    AuditQuery,
    AuditRow,
    BalanceRow,
    CreditFacts,
    CreditRow,
    CreditsQuery,
    DeliveriesQuery,
    DeliveryRow,
    IssuedKeyRow,
    IssuedWebhookRow,
    KeyLimits,
    KeyRow,
    NewCredit,
    NewCreditRow,
    NewKey,
    NewOrg,
    NewRate,
    NewRateRow,
    NewRefund,
    NewWebhook,
    NoticeRow,
    OrderRow,
    OrgLimits,
    OrgRow,
    Page,
    PageQuery,
    PlanChange,
    RateRow,
    RefundRow,
    Renaming,
    ReplayRow,
    Rotation,
    SecretRotation,
    SecretRow,
    Suspension,
    WebhookRow,
)
from proxy.api.admin.tokens import Tokens
from proxy.api.operation import Operation, Tag
from proxy.api.requests import RequestLimits
from proxy.errors import Kind

ORGS = "/admin/v1/orgs"
ORG = f"{ORGS}/{{org}}"
A_KEY = "/admin/v1/keys/{key_id}"
A_WEBHOOK = "/admin/v1/webhooks/{webhook_id}"
A_DELIVERY = "/admin/v1/webhook-deliveries/{delivery_id}"
A_CREDIT = "/admin/v1/credits/{credit:path}"
ORDER = "/admin/v1/orders/{id}"
RATES = "/admin/v1/fx"

AccountsOf = Callable[[str, IdempotentWrite | None], Accounts]


class AdminEndpoint(Desk[Reads, Accounts]):
    """`accounts_of` gives what an actor may do, and the one write that may be repeated; the ledger is for reading.

    `public_url` is the public prefix of an image's path.
    """

    ROLE = "admin"
    TAG = Tag.ADMIN

    def __init__(
        self,
        tokens: Tokens,
        ledger: Ledger,
        wallet: Wallet,
        orders: Orders,
        accounts_of: AccountsOf,
        limits: RequestLimits,
        public_url: str,
    ) -> None:
        super().__init__(tokens, ledger, Reads(ledger, wallet, orders, public_url), accounts_of, limits)

    def operations(self) -> Sequence[Operation]:
        """Return all operations. A write's id is part of its fingerprint: if an update changed the id, a repeated write
        would be refused."""
        read, write = self._read_row, self._write_row
        org, key = partial(Writing, show=Reads.show_org), partial(Writing, show=Reads.show_key)
        new_key = partial(key, unrevealed={"key": None})
        credit = Writing(writes.add_credit, Reads.show_credit, {"added": False})
        refund = Writing(writes.refund, Reads.show_refund)
        webhook = partial(Writing, show=Reads.show_webhook)
        secret = Writing(writes.rotate_secret, Reads.show_secret, {"secret": None})
        delivery = Writing(writes.replay_delivery, Reads.show_delivery)
        rate = Writing(writes.add_rate, Reads.show_rate, {"added": False})
        return [
            write(
                "create_org",
                "POST",
                ORGS,
                "Open an organisation at 0.00 MXN",
                OrgRow,
                org(writes.create_org),
                NewOrg,
                201,
            ),
            read("list_orgs", ORGS, "All organisations, oldest first", Page[OrgRow], Reads.orgs, PageQuery),
            read("get_org", ORG, "One organisation, by id or name", OrgRow, Reads.org),
            write(
                "org_limits",
                "PATCH",
                f"{ORG}/limits",
                "Set an organisation's own limits",
                OrgRow,
                org(writes.org_limits),
                OrgLimits,
            ),
            write(
                "suspend_org",
                "POST",
                f"{ORG}/suspend",
                "Refuse its orders",
                OrgRow,
                org(writes.suspend_org),
                Suspension,
            ),
            write("resume_org", "POST", f"{ORG}/resume", "Take its orders again", OrgRow, org(writes.resume_org)),
            write("rename_org", "POST", f"{ORG}/rename", "Call it otherwise", OrgRow, org(writes.rename_org), Renaming),
            write("org_plan", "POST", f"{ORG}/plan", "Give it another plan", OrgRow, org(writes.org_plan), PlanChange),
            write(
                "create_key",
                "POST",
                f"{ORG}/keys",
                "Issue a key, and show it once",
                IssuedKeyRow,
                new_key(writes.create_key),
                NewKey,
                201,
            ),
            read("list_keys", f"{ORG}/keys", "Its keys, revoked ones too", Page[KeyRow], Reads.keys, PageQuery),
            write(
                "key_limits",
                "PATCH",
                f"{A_KEY}/limits",
                "Set a key's own limits",
                KeyRow,
                key(writes.key_limits),
                KeyLimits,
            ),
            write(
                "rotate_key",
                "POST",
                f"{A_KEY}/rotate",
                "Issue a key in place of this one",
                IssuedKeyRow,
                new_key(writes.rotate_key),
                Rotation,
                201,
            ),
            write("revoke_key", "POST", f"{A_KEY}/revoke", "Revoke a key for good", KeyRow, key(writes.revoke_key)),
            write(
                "add_credit", "POST", f"{ORG}/credits", "Add credit, once per id", NewCreditRow, credit, NewCredit, 201
            ),
            read(
                "list_credits",
                f"{ORG}/credits",
                "Money in and out, latest first",
                Page[CreditRow],
                Reads.credits,
                CreditsQuery,
            ),
            write(
                "complete_credit",
                "PATCH",
                A_CREDIT,
                "Say what its tax document says",
                CreditRow,
                Writing(writes.complete_credit, Reads.show_credit),
                CreditFacts,
            ),
            read("get_order", ORDER, "All that is known of an order", OrderRow, Reads.order),
            write(
                "refund", "POST", f"{ORDER}/refund", "Give back what it was charged", RefundRow, refund, NewRefund, 201
            ),
            read("get_balance", f"{ORG}/balance", "What it can spend", BalanceRow, Reads.balance),
            read(
                "list_notices",
                f"{ORG}/notices",
                "What it was told, latest first",
                Page[NoticeRow],
                Reads.notices,
                PageQuery,
            ),
            write(
                "add_webhook",
                "POST",
                f"{ORG}/webhooks",
                "Send its events to a URL, and show its first secret once",
                IssuedWebhookRow,
                webhook(writes.add_webhook, unrevealed={"secret": None}),
                NewWebhook,
                201,
            ),
            read("list_webhooks", f"{ORG}/webhooks", "Its webhooks, oldest first", Page[WebhookRow], Reads.webhooks),
            write(
                "rotate_webhook_secret",
                "POST",
                f"{ORG}/webhook-secret",
                "Make a new secret of its webhooks, and show it once",
                SecretRow,
                secret,
                SecretRotation,
                201,
            ),
            write(
                "disable_webhook",
                "POST",
                f"{A_WEBHOOK}/disable",
                "Send nothing to a webhook any more",
                WebhookRow,
                webhook(writes.disable_webhook),
            ),
            read(
                "list_webhook_deliveries",
                f"{ORG}/webhook-deliveries",
                "What was sent to its webhooks, latest first",
                Page[DeliveryRow],
                Reads.deliveries,
                DeliveriesQuery,
            ),
            write(
                "replay_webhook",
                "POST",
                f"{A_WEBHOOK}/replay",
                "Send again what is set aside for a webhook",
                ReplayRow,
                webhook(writes.replay_webhook, unrevealed={"deliveries": 0}),
            ),
            write(
                "replay_webhook_delivery",
                "POST",
                f"{A_DELIVERY}/replay",
                "Send one delivery again",
                DeliveryRow,
                delivery,
            ),
            read("list_rates", RATES, "The rate of every month", Page[RateRow], Reads.rates, PageQuery),
            write("add_rate", "POST", RATES, "Add a month's exchange rate", NewRateRow, rate, NewRate, 201),
            read(
                "list_audit",
                "/admin/v1/audit",
                "Who did what, latest first",
                Page[AuditRow],
                Reads.audit,
                AuditQuery,
                more=(Kind.NOT_FOUND,),  # for the organisation in the query
            ),
        ]
