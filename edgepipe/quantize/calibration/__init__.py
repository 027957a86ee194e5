"""Calibration: what values activations take, and the range that each of them gets."""
