"""Tables from stored records and scores, and documents that quote them.

`by_configuration` has the tables per block, per category and per method, `by_features` those of the features that edits
switched, `files` makes all tables of a model and writes or checks their files, `documents` fills marked parts of
Markdown documents.
"""

from riebench.analysis.tables.by_configuration import (
    TablePair,
    cell_text,
    outsized_notes,
    per_block,
    per_category,
    per_method,
)
from riebench.analysis.tables.by_features import (
    FeatureShare,
    SwitchedCount,
    feature_shares,
    per_feature_share,
    per_switched_count,
    switched_counts,
)
from riebench.analysis.tables.documents import fill_document, fill_parts, table_part
from riebench.analysis.tables.files import check_tables, model_tables, table_texts, write_tables

__all__ = [
    "FeatureShare",
    "SwitchedCount",
    "TablePair",
    "cell_text",
    "check_tables",
    "feature_shares",
    "fill_document",
    "fill_parts",
    "model_tables",
    "outsized_notes",
    "per_block",
    "per_category",
    "per_feature_share",
    "per_method",
    "per_switched_count",
    "switched_counts",
    "table_part",
    "table_texts",
    "write_tables",
]
