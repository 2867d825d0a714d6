"""Vector folders: encoding, storage and reading."""
