"""What a recipe takes on devices that are not here: `ilu plan`."""
