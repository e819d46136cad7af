"""The settings of webhooks, read where they are used: which hosts they may reach, and the key of their secrets."""

from config.settings import Settings, SettingsError
from metering.webhooks.registry import WebhookRules
from metering.webhooks.sealing import SecretsKey
from proxy.webhooks.targets import WebhookHosts, why_not


def read_webhook_hosts(settings: Settings) -> WebhookHosts:
    """Read GHUB_WEBHOOK_HOSTS. Raises SettingsError."""
    try:
        return WebhookHosts(settings.webhook_hosts)
    except ValueError as error:
        raise SettingsError(f"GHUB_WEBHOOK_HOSTS: {error}") from None


def read_secrets_key(settings: Settings) -> SecretsKey | None:
    """Read GHUB_SECRETS_KEY; None if it is not set. Raises SettingsError."""
    if settings.secrets_key is None:
        return None
    try:
        return SecretsKey(settings.secrets_key.get_secret_value())
    except ValueError as error:
        raise SettingsError(f"GHUB_SECRETS_KEY: {error}") from None


def read_webhook_rules(settings: Settings) -> WebhookRules | None:
    """Read both; None without a key, for then there are no webhooks. Raises SettingsError."""
    hosts, key = read_webhook_hosts(settings), read_secrets_key(settings)
    return None if key is None else WebhookRules(key, lambda url: _why_not(url, hosts))


def _why_not(url: str, hosts: WebhookHosts) -> str | None:
    """Return why no webhook may have this URL, as it stands behind the field's name and a colon; None if it may."""
    why = why_not(url, hosts, "url")
    return None if why is None else why.removeprefix("`url` ").removesuffix(".")
