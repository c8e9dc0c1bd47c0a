"""What people see: lists, timelines, next steps, statistics, alerts. The shapes stand in `models`."""

from receiver.ledger.reports.alerts import DueAlert, Topic, mark_sent, take_alert
from receiver.ledger.reports.call_timeline import call_story, list_calls
from receiver.ledger.reports.statistics import (
    LedgerFigures,
    figures,
    flow,
    pending,
    rejections,
    stats,
    throughput,
    workers,
)
from receiver.ledger.reports.timeline import (
    Original,
    OtherBody,
    find_event,
    list_events,
    original,
    other_bodies,
    story,
)

__all__ = [
    "DueAlert",
    "LedgerFigures",
    "Original",
    "OtherBody",
    "Topic",
    "call_story",
    "figures",
    "find_event",
    "flow",
    "list_calls",
    "list_events",
    "mark_sent",
    "original",
    "other_bodies",
    "pending",
    "rejections",
    "stats",
    "story",
    "take_alert",
    "throughput",
    "workers",
]
