"""Stage: statistics, plots and the report."""
