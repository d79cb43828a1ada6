"""Many bundles in one table: `depth_train compare`."""
