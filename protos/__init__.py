"""What both sides agree on: messages, manifests, the depot service, how an artifact runs."""
