"""Sweeps: encoders x data sets x templates from one YAML, a row each."""
