"""Data: exactly known toys, and images."""
