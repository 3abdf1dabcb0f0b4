"""The commands that make and show experiments: run, table, plot, report, sweep, search."""
