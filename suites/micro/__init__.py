"""The micro suite: one decode step of attention, kernel by kernel."""
