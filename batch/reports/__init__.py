"""HTML reports: the page of a run, and the charts and templates of all pages."""
