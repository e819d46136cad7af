"""The settings of webhooks, read where they are used: which hosts they may reach, and the key of their secrets."""

from config.settings import Settings, SettingsError
from metering.webhooks.sealing import SecretsKey
from proxy.webhooks.targets import WebhookHosts


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
