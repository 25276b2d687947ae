"""Predictors: a subnet's accuracy from those of a few that were measured."""
