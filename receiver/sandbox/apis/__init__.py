"""One module for each API: its resources, its words for errors, and where it looks for credentials."""

from receiver.sandbox.apis.celper import CELPER
from receiver.sandbox.apis.chronapilot import CHRONAPILOT
from receiver.sandbox.apis.salesly import SALESLY
from receiver.sandbox.apis.stannp import STANNP
from receiver.sandbox.apis.telness import TELNESS

APIS = (CELPER, CHRONAPILOT, SALESLY, STANNP, TELNESS)

__all__ = ["APIS"]
