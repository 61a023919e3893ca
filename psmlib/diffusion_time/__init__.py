"""How long to diffuse: the evidence bound of a shorter diffusion, its parts, and laws that stand for x_T."""
