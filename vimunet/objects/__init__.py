"""What can be said of labelled objects, and done to them."""
