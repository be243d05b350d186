"""The one table of a study, and everything that is selected from it: comparisons, tables, budgets."""
