"""What metrics and alerts stand on: totals that only grow, and what was told."""
