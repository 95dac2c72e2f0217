"""Packets to tokens and back. Pure."""
