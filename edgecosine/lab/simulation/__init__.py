"""A cluster in virtual time: the node's own actors, on simulated processors, links and models."""
