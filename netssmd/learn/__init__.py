"""Captures to a model, and the verdict on it."""
