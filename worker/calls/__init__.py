"""Outbound calls that take effect once."""
