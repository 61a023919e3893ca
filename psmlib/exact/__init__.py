"""Distributions known in closed form under diffusion: their scores, expectations, best losses, known errors."""
