"""Results as pages: Markdown from templates, plots, and the numbers in both."""
