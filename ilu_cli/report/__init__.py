"""Reports: what is on disk about a family of runs → numbers and warnings → figures → one page, as HTML and Markdown."""
