"""Predicting how long a subnet runs on a device, from what that device measured."""
