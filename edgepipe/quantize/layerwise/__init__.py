"""Rounding of weights layer by layer, each for what the quantized layers before it leave of its input."""
