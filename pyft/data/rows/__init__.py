"""Records -> standard conversations, pairs, texts."""
