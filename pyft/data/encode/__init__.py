"""Rendered conversations and texts -> ids and labels, together."""
