"""Measures the costs of drafter kills, of target restarts, and of journal and TLS."""
