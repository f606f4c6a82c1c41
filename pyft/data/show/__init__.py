"""What a person looks at: the ledger, samples, templates."""
