"""Labels for a large collection, in parts, so that a stopped run goes on."""
