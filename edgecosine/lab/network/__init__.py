"""Emulated networks: namespaces joined by a hub, or processes joined by relays."""
