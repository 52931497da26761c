"""Hosts with weather between them: namespaces joined by a hub, or processes joined by relays."""
