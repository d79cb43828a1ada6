"""A recording played to the real node over DDS: the other programs of ROS, and what came back."""
