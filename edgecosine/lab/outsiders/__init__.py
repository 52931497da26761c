"""Programs of others as judges of a target: each in an environment of its own, unmodified."""
