"""Compute cores, one per file, each with its plain-torch reference ``x_ref`` beside it."""
