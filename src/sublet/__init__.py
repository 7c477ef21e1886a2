"""Sublet: rent out the GPUs you are not using; have them back the moment you need them."""

__version__ = "0.1.0"
