"""What a device does so that its update stays its own: noise, and masks that cancel in the sum."""
