"""Finding, loading and looking into models."""
