"""Batches -> scores."""
