"""Idempotency-Key for servers: one engine, driven by policies that are data."""

from receiver.idempotency.engine import Engine
from receiver.idempotency.policy import KeyPolicy, Refusal, Scope, policy_of
from receiver.idempotency.reading import read_body

__all__ = ["Engine", "KeyPolicy", "Refusal", "Scope", "policy_of", "read_body"]
