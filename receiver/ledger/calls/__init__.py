"""The journal of outbound calls: what a handler asked for, each time it went out, and what came back."""
