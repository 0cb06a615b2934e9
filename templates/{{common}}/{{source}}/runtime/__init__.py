"""The loop and what keeps a run alive. Nothing that only one kind or one way of training needs."""
