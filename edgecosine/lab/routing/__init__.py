"""How well requests are routed to drafters, on prompts that nothing has seen before."""
