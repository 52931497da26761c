"""Where speculation across machines pays, and which part of it: simulated on slowed processors."""
