"""Faults, and what they come to."""
