"""Evaluates policies in simulation: episodes, intervals and videos."""
