"""Recipes that come with pyft, and the command that lists and copies them."""
