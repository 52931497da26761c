"""Measures where speculation across machines pays, and which of its parts, by simulation of slowed
processors."""
