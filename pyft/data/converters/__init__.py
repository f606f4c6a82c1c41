"""Records to rows: one converter a format."""
