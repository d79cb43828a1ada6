"""From encoded pictures to arrays, and from distorted to rectified ones."""
