"""Tables of a study, drawn from its records alone.

`summary` holds the numbers, `contents` says what each table shows, `layout` how it looks, `findings` what it says in
sentences; `variants` names the models and puts them in order.
"""

from edgemin_utils.tables.contents import (
    Table,
    cost_table,
    every_table,
    factorial_effects,
    factorial_table,
    latency_table,
    main_results,
    table_notes,
    training_time_table,
)
from edgemin_utils.tables.findings import findings
from edgemin_utils.tables.layout import as_latex, as_markdown, as_text, readable, task_label, write_tables
from edgemin_utils.tables.summary import compare, summarize
from edgemin_utils.tables.variants import StudyRecords, read_study

__all__ = [
    "StudyRecords", "Table", "as_latex", "as_markdown", "as_text", "compare", "cost_table", "every_table",
    "factorial_effects", "factorial_table", "findings", "latency_table", "main_results", "read_study", "readable",
    "summarize", "table_notes", "task_label", "training_time_table", "write_tables",
]
