"""Does the search find better networks than chance at equal cost? See PROTOCOL.md."""
