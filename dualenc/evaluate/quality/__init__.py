"""Data quality: how well pairs fit, which go, and which test images were trained on."""
