"""The benchmarks: conditions (cells), clusters, runs, records, figures and plots."""
