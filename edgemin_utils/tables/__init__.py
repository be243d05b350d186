"""Tables of a study, drawn from its records alone.

`summary` holds the numbers, `overview` the study at a glance, `main_path` the paper's path, `factorial` what each step
does by itself, `comparisons` sets methods side by side, `recommended` finds the models worth using, `contents` says
what each table shows, `layout` how it looks, `findings` and `method_findings` what it says in sentences; `variants`
names the models and puts them in order.

The chapters show one chain, stage by stage: `stage_tables`, `cut_tables` and `scheme_tables` draw its tables,
`stage_findings` its sentences. `measurement_sheet` is the text of `edgemin measure`.
"""

from edgemin_utils.tables.comparisons import cuts_table, objectives_table, orders_table, schemes_table
from edgemin_utils.tables.contents import (
    Table,
    budget_table,
    chains_table,
    comparison_tables,
    cost_table,
    every_table,
    latency_note,
    latency_table,
    main_results,
    main_table,
    overview_table,
    recommended_table,
    table_notes,
    training_time_table,
)
from edgemin_utils.tables.factorial import factorial_effects, factorial_table
from edgemin_utils.tables.findings import findings
from edgemin_utils.tables.layout import as_html, as_latex, as_markdown, as_text, readable, write_table, write_tables
from edgemin_utils.tables.method_findings import method_findings
from edgemin_utils.tables.recommended import budget_models, candidates, recommended_models
from edgemin_utils.tables.summary import compare, own_models, summarize
from edgemin_utils.tables.variants import StudyRecords, read_study, task_label

__all__ = [
    "StudyRecords",
    "Table",
    "as_html",
    "as_latex",
    "as_markdown",
    "as_text",
    "budget_models",
    "budget_table",
    "candidates",
    "chains_table",
    "compare",
    "comparison_tables",
    "cost_table",
    "cuts_table",
    "every_table",
    "factorial_effects",
    "factorial_table",
    "findings",
    "latency_note",
    "latency_table",
    "main_results",
    "main_table",
    "method_findings",
    "objectives_table",
    "orders_table",
    "overview_table",
    "own_models",
    "read_study",
    "readable",
    "recommended_models",
    "recommended_table",
    "schemes_table",
    "summarize",
    "table_notes",
    "task_label",
    "training_time_table",
    "write_table",
    "write_tables",
]
