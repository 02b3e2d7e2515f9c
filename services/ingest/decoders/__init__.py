"""What replicators, applications and files write, turned into changes: pure functions, one file a format."""
