"""Banks (K networks of one architecture, stacked as rows of one tensor), their Scores and their checkpoint files."""
