"""A soak test: a long overload, in which every request must end, and normal load afterwards."""
