"""The report: what the rows say, as pictures, tables, one self-contained page, a summary and metrics."""
