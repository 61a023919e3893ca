"""Evaluation of trained models: likelihoods, losses, memorisation and sample quality, with reference values."""
