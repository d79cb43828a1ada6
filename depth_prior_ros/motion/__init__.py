"""Whether the vehicle moves, and how the camera moved between two frames."""
