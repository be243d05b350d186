"""The rows of a task: read from wherever they are, looked at once, split, and turned into tokens."""
