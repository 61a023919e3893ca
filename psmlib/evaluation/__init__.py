"""How good a model is: likelihoods, losses and samples beside exact values and densities without a network."""
