"""Finishing one class's weak model: a few more rounds for its subnet alone, after the search."""
