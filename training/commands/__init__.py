"""`depth_train` and its commands."""
