"""Render report.html: one self-contained page, from a summary and its records."""
