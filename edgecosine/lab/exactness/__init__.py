"""Checks that answers under speculation equal those of plain decoding."""
