"""Idempotency-Key for servers: one engine, driven by policies that are data."""

from receiver.idempotency.engine import Engine, read_body
from receiver.idempotency.policy import KeyPolicy, Refusal, Scope, policy_of

__all__ = ["Engine", "KeyPolicy", "Refusal", "Scope", "policy_of", "read_body"]
