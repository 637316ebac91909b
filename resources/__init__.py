"""The kinds of thing that can be reserved, a folder each."""
