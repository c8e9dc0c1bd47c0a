"""The web side: receives, verifies and records deliveries."""
