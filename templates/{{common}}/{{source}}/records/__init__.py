"""What is measured, kept and shown of a run. Nothing that steers it."""
