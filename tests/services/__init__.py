"""Real servers and processes for tests, to start, freeze, kill and clean up. No mocks, no Docker."""
