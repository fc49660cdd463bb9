"""Zero-shot classification: classifiers of prompts, accuracy, calibration, confusion, several labels an image."""
