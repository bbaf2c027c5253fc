"""The fault campaign: each promise as a fault that is injected. ``make faults`` runs it and prints what survived."""
