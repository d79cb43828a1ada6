"""`depth_train explain`: what a student looks up in its prior, and the prior as a whole."""
