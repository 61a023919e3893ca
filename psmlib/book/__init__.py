"""The book: recorded results, tables and figures made from them, runs of notebooks, and the build of the pages."""
