"""Laws known in closed form under diffusion: scores, expectations, reference values, scores with a known error."""
