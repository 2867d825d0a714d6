"""Recipes: whole experiments in one TOML file, planned without torch and resumed at every stage."""
