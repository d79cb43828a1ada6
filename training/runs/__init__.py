"""A recipe carried out: from its first networks to its bundle."""
