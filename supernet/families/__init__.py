"""Families of search spaces: each states its axes and builds its module."""
