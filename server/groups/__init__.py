"""Processes on the server's host that check and fold updates as they arrive."""
