"""Pages and charts: one HTML file that carries everything in itself and opens without a network."""
