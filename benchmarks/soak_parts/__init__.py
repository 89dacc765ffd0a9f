"""Parts of the long soak."""
