"""What the commands do: plan(recipe) → Plan, then run it. Nothing here prints."""
