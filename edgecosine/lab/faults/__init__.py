"""Measures the cost of drafter kills, target restarts, journal and TLS."""
