"""Branches: several supernets trained side by side in one run, by one fleet."""
