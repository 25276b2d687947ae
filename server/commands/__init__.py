"""The operator's commands: each parses, calls one function, prints."""
