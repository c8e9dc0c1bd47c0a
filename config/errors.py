"""What configuration can raise."""


class ConfigError(Exception):
    """A setting is wrong; the message is one sentence: where, what was found, what is allowed."""
