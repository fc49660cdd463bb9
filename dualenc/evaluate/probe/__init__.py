"""Linear probe and few-shot: what a linear classifier learns from frozen embeddings."""
