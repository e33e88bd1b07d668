"""One document as terminal tables, Markdown, HTML and files."""
