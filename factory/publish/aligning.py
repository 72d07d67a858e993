"""Aligning: to come."""
