"""Signatures of deliveries: pure, compiled once, and closed: verified or InvalidSignature, for all bytes."""

from receiver.signatures.errors import REASONS, CannotVerify, InvalidSignature
from receiver.signatures.request import CannotSign, Request
from receiver.signatures.schemes import Scheme, compile_scheme

__all__ = [
    "REASONS",
    "CannotSign",
    "CannotVerify",
    "InvalidSignature",
    "Request",
    "Scheme",
    "compile_scheme",
]
