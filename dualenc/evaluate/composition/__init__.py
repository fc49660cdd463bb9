"""Composition: true captions against nearly equal wrong ones; the built-in swaps, SugarCrepe, Winoground."""
