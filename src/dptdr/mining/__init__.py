"""Hard negatives: sources, false-negative filtering, teachers, report."""
