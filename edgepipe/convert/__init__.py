"""Emitters: one model, written for each runtime."""
