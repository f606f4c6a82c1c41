"""Recipes: the schema, reading, merging, overriding and checking them.

Imports neither torch nor transformers, so that a wrong recipe is answered at once.
"""
