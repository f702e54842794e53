"""riebench: what sparse autoencoder features of SDXL do to pictures, measured edit by edit."""

from riebench._version import __version__

__all__ = ["__version__"]
