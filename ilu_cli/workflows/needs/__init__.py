"""`ilu doctor` and `ilu fetch`: what a recipe or a model needs, and whether it is here."""
