"""Third-party programs that test a target over HTTP, unmodified, each in its own environment."""
