"""What a device remembers of the updates that it sent in few bytes."""
