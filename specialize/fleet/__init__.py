"""Planning which subnets serve a fleet of devices, each with bounds of its own: pure, with numpy."""
