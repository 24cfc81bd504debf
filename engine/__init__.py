"""Decides: the async client over Redis."""
