"""Data and settings; imports nothing of ours."""
