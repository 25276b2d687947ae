"""Aggregation rules: each a fold over updates of unequal regions."""
