"""report.html: one page that needs no network, drawn from a summary and its records."""
