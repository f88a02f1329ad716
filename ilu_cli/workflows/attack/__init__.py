"""`ilu attack`: change a model in the attacker's way, and follow what comes back."""
