"""The rules that decide whether a written run may go live."""
