"""The book: results on record, tables and figures made from them, notebooks run and pages built."""
