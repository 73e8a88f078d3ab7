"""From genomes to scores: load the allowed data, plan the compiled program, run cells, settle, reduce."""
