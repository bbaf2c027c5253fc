"""Stage: partition files, the warehouse and exports."""
