"""Banks: K networks of one architecture held as one stack of parameters, their Scores and their checkpoints."""
