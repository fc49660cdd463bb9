"""WiSE-FT: encoders between the starting and the tuned weights, and the curve of their scores."""
