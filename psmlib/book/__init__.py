"""The book: recorded results, the tables and figures made from them, running notebooks and building pages."""
