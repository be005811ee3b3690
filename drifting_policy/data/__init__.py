"""Demonstrations: storage, chunk index, derived keys, downloads."""
