"""The benchmarks: cells, clusters, runs, records, figures and plots."""
