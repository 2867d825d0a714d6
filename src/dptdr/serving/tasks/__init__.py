"""Tasks of a server: registry, catalogue, prompts, indexes."""
