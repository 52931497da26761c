"""The cost of drafter kills, target restarts and protection for requests."""
