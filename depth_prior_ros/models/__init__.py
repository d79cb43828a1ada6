"""The networks of both papers, without input or output."""
