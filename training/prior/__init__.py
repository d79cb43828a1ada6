"""The rich-resource prior (RPrDepth): reference pixels of a teacher, chosen and looked up."""
