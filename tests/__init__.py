"""Tests, sorted by what must be running: unit, integration, acceptance, defects."""
