"""Where handlers live: every module in here is imported when a worker starts."""
