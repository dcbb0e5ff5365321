"""A user's model and loss, as the engine calls them."""
