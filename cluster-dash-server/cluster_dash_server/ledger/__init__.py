"""What keeps alerts, notices that wait, silences and maintenance."""
