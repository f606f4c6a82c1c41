"""Many rows: encoded by workers, stored, found again in the cache."""
