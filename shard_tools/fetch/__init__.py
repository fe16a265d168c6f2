"""Datasets that can be downloaded: which files, from where, and how they are unpacked."""
