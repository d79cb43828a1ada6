"""Networks that tell features and depth of reference pixels."""
