"""Scores -> a better model, watched."""
