"""The console: web pages for operators, analysts and support; a process of its own beside serving."""
