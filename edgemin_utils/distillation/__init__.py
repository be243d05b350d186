"""Distillation objectives: what a student matches of its teacher, and in which phases. One file an idea."""
