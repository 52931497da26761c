"""Compares requests over HTTP with the same requests over MQTT."""
