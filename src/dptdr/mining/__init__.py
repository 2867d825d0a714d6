"""Hard negative mining: sources, false-negative filtering, teachers and reports."""
