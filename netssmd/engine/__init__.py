"""Many sessions, one model."""
