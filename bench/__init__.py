"""Drivers that print figures."""
