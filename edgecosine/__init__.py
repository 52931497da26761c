"""EdgeCoSine: an edge cluster runtime for cooperative speculative decoding."""

__version__ = "0.1.0"
