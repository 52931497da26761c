"""The benchmarks: what runs against what, on which clusters, and what becomes of the records."""
