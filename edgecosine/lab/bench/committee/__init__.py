"""Measures committees: several targets that answer by the mean of their distributions."""
