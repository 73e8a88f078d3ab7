"""What a person sees: the live view, tables, answers to questions about an archive. Reads, never writes, runs."""
