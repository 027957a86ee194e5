"""Bits for each layer: their cost at the outputs, what they spend, and the best choice within a budget."""
