"""Rendered rows to ids and labels."""
