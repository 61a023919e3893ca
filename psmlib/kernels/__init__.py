"""Compute cores, one per file, each with its plain-torch reference ``x_ref`` beside it."""

from psmlib.kernels.optimal_denoiser import optimal_denoiser

__all__ = ["optimal_denoiser"]
