"""What the node publishes: depth, points, colour, compressed depth."""
