"""Views of runs: tables for the terminal, and an HTML report that opens offline."""
