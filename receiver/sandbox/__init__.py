"""The five APIs of `docs/dialects.md` as a local server, each treating idempotency keys in its own way."""
