"""What the environment says of logs, metrics and alerts."""

import re
from datetime import timedelta

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from config.durations import Duration
from config.logs import Form

TOKEN_MIN = 16
"""Characters; whoever may ask often could guess a shorter one."""

_ADDRESS = re.compile(r"https?://[^\s/?#@]+([/?][^\s#]*)?")


class TelemetrySettings(BaseSettings):
    """The part of `Settings` that only tells what happens; without it everything works the same."""

    logs: Form = Field(default="auto", validation_alias="FIRSTSEEN_LOGS")
    metrics_token: SecretStr = Field(
        default=SecretStr(""), validation_alias="FIRSTSEEN_METRICS_TOKEN", repr=False
    )
    alert_url: SecretStr = Field(default=SecretStr(""), validation_alias="FIRSTSEEN_ALERT_URL", repr=False)
    alert_backlog: Duration = Field(default=timedelta(minutes=10), validation_alias="FIRSTSEEN_ALERT_BACKLOG")

    @field_validator("metrics_token")
    @classmethod
    def _hard_to_guess(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < TOKEN_MIN:
            raise ValueError(f"it must have {TOKEN_MIN} characters or more, as a shorter one can be guessed")
        return token

    @field_validator("alert_url")
    @classmethod
    def _an_address(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not _ADDRESS.fullmatch(url.get_secret_value()):
            raise ValueError("it must be an address that begins with https:// or http:// and a host")
        return url

    @field_validator("alert_backlog")
    @classmethod
    def _some_time(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("a duration must be longer than 0s")
        return value
