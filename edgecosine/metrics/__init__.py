"""What a target measures while it serves, and its form for Prometheus."""
