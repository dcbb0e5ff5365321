"""Training: the loop, the step, and what surrounds them. This is where torch begins."""
