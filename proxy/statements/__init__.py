"""Statements for people: one sheet of words and numbers, drawn as HTML and as PDF."""
