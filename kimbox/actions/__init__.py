"""What each verb does, from a plan or a machine: one module a verb."""
