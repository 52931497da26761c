"""What kills of drafters, restarts of the target, and protection cost those who ask."""
