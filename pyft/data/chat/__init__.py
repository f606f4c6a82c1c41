"""Chat templates: rendering in a sandbox, and finding what is learned in what was rendered."""
