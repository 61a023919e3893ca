"""Where to cut diffusion time."""

from psmlib.clustering.rules import split

__all__ = ["split"]
