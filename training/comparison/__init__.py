"""Several bundles or recipes side by side."""
