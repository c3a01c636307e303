"""The profile commands: from a case's name to where its time and its bytes go."""
