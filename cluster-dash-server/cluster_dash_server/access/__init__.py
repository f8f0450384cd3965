"""Who may post, and who may look."""
