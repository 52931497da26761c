"""A cluster in virtual time: the actors of real nodes on simulated processors, links and models."""
