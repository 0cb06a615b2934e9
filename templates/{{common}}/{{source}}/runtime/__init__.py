"""The loop, checkpoints, mesh, processes. Nothing that only one kind or way of training needs."""
