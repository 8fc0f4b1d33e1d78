"""Reader of tables: CSV, TSV, JSON, JSON Lines, Parquet, and folders that `datasets` saved.

`files.py` opens a table, `columns.py` finds its columns, `options.py` and `gold.py` read a row's options and answer,
`reader.py` puts a table's questions together.

To accept another usual name of a column, add it to `USUAL_NAMES` in `columns.py`, and to the table in docs/data.md.
"""
