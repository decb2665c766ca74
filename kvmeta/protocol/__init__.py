"""What client and server share: columns as bytes, records as messages, errors as statuses."""
