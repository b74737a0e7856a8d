"""Reports: from records to a summary, and from the summary to tables, Markdown and HTML."""
