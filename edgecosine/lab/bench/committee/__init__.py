"""Measures committees of several targets."""
