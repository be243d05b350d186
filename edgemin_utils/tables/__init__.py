"""Tables of a study, drawn from its records alone.

`summary` holds the numbers, `contents` says what each table shows, `layout` how it looks, `findings` what it says in
sentences; `variants` names the models and puts them in order.
"""

from edgemin_utils.tables.contents import (
    Table,
    chains_table,
    cost_table,
    every_table,
    factorial_effects,
    factorial_table,
    latency_note,
    latency_table,
    main_results,
    main_table,
    table_notes,
    training_time_table,
)
from edgemin_utils.tables.findings import findings
from edgemin_utils.tables.layout import as_html, as_latex, as_markdown, as_text, readable, task_label, write_tables
from edgemin_utils.tables.summary import compare, summarize
from edgemin_utils.tables.variants import StudyRecords, read_study

__all__ = [
    "StudyRecords", "Table", "as_html", "as_latex", "as_markdown", "as_text", "chains_table", "compare", "cost_table",
    "every_table", "factorial_effects", "factorial_table", "findings", "latency_note", "latency_table",
    "main_results", "main_table", "read_study", "readable", "summarize", "table_notes", "task_label",
    "training_time_table", "write_tables",
]
