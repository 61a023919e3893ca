"""Compute kernels, one per file: the plain-torch reference ``x_ref`` and, where there is one, its Triton kernel."""

from psmlib.kernels.optimal_denoiser import optimal_denoiser

__all__ = ["optimal_denoiser"]
