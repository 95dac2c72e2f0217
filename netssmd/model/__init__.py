"""Tokens to the next token: the Mamba-2 model, its checkpoints and its backends."""
