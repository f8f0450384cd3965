"""What several replicas of a server share: the live view, and which sequence numbers are settled in history."""
