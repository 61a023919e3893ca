"""Data: toy densities known exactly, and images."""
