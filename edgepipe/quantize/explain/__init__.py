"""Which layers lose the accuracy, why, and what would help."""
