"""Recipes: typed YAML, one file extending another."""
