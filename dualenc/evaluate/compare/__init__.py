"""Two encoders on the same queries: differences, intervals, and whether they are more than chance."""
