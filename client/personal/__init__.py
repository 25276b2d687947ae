"""A device's own model: the published one, trained further on its own examples, in the same file."""
