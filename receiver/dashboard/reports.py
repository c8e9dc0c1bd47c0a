"""`/sources` and `/apis`: the configuration as it is loaded, never a secret, and what was refused."""

from typing import Any

from flask import render_template

from config.apis import Api
from config.sources import Source
from receiver.dashboard.parts import DashboardParts
from receiver.dashboard.rules import dialect_rules, source_rules
from receiver.dashboard.words import duration
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import rejections

LATEST = 10
"""Rejections shown of each source."""

REASONS = {
    "no_secret": "this source has no secret yet",
    "too_large": "the body is larger than max_body",
}

Told = dict[str, Any]


class Reports:
    """The views that only look at what is configured."""

    def __init__(self, parts: DashboardParts) -> None:
        self._parts = parts

    def list_sources(self) -> str:
        """Show every source with its windows, rules and last rejections."""
        shown = [self._source(source) for source in self._parts.sources.values()]
        return render_template("sources.html", sources=shown)

    def list_apis(self) -> str:
        """Show every API with its limits and its dialect's rules."""
        return render_template("apis.html", apis=[_api(api) for api in self._parts.apis.values()])

    def _source(self, source: Source) -> Told:
        return {
            "name": source.name,
            "provider": source.provider.title,
            "docs": source.provider.docs,
            "path": f"/webhooks/{source.name}",
            "secrets": len(source.secrets),
            "variables": source.secret_names,
            "problem": source.problem,
            "warnings": source.warnings,
            "rules": list(source_rules(source)),
            "redact": [str(path) for path in source.redact],
            "facts": {
                "ids kept": duration(source.retention),
                "payloads kept": duration(source.payload_retention),
                "largest body": f"{source.max_body / 1_048_576:g} MiB",
            },
            "headers": (*source.provider.keep_headers, *source.keep_headers),
            "refused": self._refused(source.name),
        }

    def _refused(self, name: str) -> list[Told] | None:
        try:
            latest = rejections(self._parts.store, name)["latest"][:LATEST]
        except LedgerError:
            return None
        return [{**one, "reason": reason_words(one["reason"])} for one in latest]


def reason_words(reason: str) -> str:
    """Write a rejection's reason for people."""
    return REASONS.get(reason, reason.replace("_", " "))


def _api(api: Api) -> Told:
    times = (
        ("connect timeout", api.connect_timeout),
        ("read timeout", api.read_timeout),
        ("deadline", api.deadline),
    )
    return {
        "name": api.name,
        "base_url": api.base_url,
        "dialect": api.dialect_name,
        "title": api.dialect.title,
        "auth": f"{api.auth.header}, from {api.auth.variable}",
        "problem": api.problem,
        "rules": list(dialect_rules(api)),
        "facts": {name: duration(value) for name, value in times}
        | {"connections": str(api.max_connections), "headers added": ", ".join(api.headers) or "none"},
    }
