"""The device: profile, data, local training, pull and activation."""
