"""riebench: a benchmark of sparse autoencoder features in image generation.

It measures edit by edit what switching the features of a text-to-image model does to its pictures.
"""

from riebench._version import __version__

__all__ = ["__version__"]
