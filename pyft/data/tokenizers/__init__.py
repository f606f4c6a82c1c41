"""Tokenizers loaded or built, and text -> ids."""
