"""How gradients become new weights."""
