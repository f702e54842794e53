"""riebench: what sparse autoencoder features of SDXL do to pictures, measured edit by edit."""

__version__ = "0.1.0"
