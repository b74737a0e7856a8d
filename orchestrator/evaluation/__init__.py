"""Evaluation: datasets become samples, answers become records, records become scores and a report."""
