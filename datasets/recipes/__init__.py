"""Recipes: commands that make or fetch data sets."""
