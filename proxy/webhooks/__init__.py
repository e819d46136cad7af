"""What webhooks need of the settings and of our errors: where they may lead, and what they say of a failure."""
