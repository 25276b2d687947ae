"""Differential privacy of what is published, and sums of updates that nobody sees one by one."""
