"""Bags in; bags, data sets and reports out."""
