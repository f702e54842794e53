"""Export of results for other programs.

`files` writes tables and data sets, `figures` the figures for papers.
"""

from riebench.analysis.export.files import (
    CSV,
    DATASET,
    DEFAULT_FORMATS,
    FIGURES,
    FORMATS,
    LATEX,
    PARQUET,
    check_formats,
    check_hub_name,
    column_frame,
    data_frame,
    export,
    method_rows,
    push,
    save_dataset,
    to_dataset,
    unit_rows,
)

__all__ = [
    "CSV",
    "DATASET",
    "DEFAULT_FORMATS",
    "FIGURES",
    "FORMATS",
    "LATEX",
    "PARQUET",
    "check_formats",
    "check_hub_name",
    "column_frame",
    "data_frame",
    "export",
    "method_rows",
    "push",
    "save_dataset",
    "to_dataset",
    "unit_rows",
]
