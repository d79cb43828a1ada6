"""Which reference pixels are kept."""
