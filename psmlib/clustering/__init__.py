"""Timestep clustering: rules for the block borders of a partition of diffusion time."""

from psmlib.clustering.rules import split

__all__ = ["split"]
