"""What people see: lists, timelines, next steps, statistics, alerts."""

from receiver.ledger.reports.alerts import News, Topic, next_news, told
from receiver.ledger.reports.call_timeline import call_story, list_calls
from receiver.ledger.reports.models import Calls, CallStory, Problem
from receiver.ledger.reports.statistics import (
    Figures,
    figures,
    flow,
    pace,
    pending,
    rejections,
    stats,
    workers,
)
from receiver.ledger.reports.timeline import Original, conflicts, find_event, list_events, original, story

__all__ = [
    "CallStory",
    "Calls",
    "Figures",
    "News",
    "Original",
    "Problem",
    "Topic",
    "call_story",
    "conflicts",
    "figures",
    "find_event",
    "flow",
    "list_calls",
    "list_events",
    "next_news",
    "original",
    "pace",
    "pending",
    "rejections",
    "stats",
    "story",
    "told",
    "workers",
]
