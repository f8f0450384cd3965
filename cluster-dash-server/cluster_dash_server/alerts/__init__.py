"""Alerts: rules as data, what they look at, their evaluation, and the loop that acts."""
