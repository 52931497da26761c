"""Requests over HTTP beside the same requests over MQTT."""
