"""A soak test: long overload, in which every request must end, and normal service afterwards."""
