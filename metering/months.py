"""The close of a month: only when it is whole, and sealed so that a file proves itself (rule 37)."""
