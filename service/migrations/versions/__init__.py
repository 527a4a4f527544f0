"""One module for each layout; never changed once it has been released."""
