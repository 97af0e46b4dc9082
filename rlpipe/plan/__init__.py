"""What a recipe will take, from the recipe and a model's configuration alone: neither torch nor ray."""
