"""A cluster in virtual time: the runtime's own actors, on simulated processors, links and models."""
