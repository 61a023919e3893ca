"""Data: toy densities in closed form, and images."""
