"""Reference pixels: extracted, stored, read."""
