"""Hostile input: every handler of a peer's bytes, every decoder of a stranger's file."""
