"""Real servers and real processes for tests: started, frozen, killed and cleaned up. No mocks, no Docker."""
