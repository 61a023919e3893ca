"""How long to diffuse: the evidence bound of a shorter diffusion, its terms, and models of the distribution of x_T."""
