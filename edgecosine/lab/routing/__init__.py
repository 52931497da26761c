"""Measures how well requests are routed to drafters, on prompts that no model has seen before."""
