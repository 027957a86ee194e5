"""Factors traded between neighbouring layers, channel by channel, before anything is rounded."""
